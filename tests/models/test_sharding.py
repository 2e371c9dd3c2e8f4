from __future__ import annotations

from pathlib import Path

from tests.models.several_processes import check_two_processes


def test_two_processes_with_spread_weights_train_as_one_does(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    check_two_processes(model_v1, model_v2, tmp_path, fsdp=True)
