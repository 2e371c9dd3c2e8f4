from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.several_processes import check_two_processes
from uphold.models.processes import Processes, is_first


def test_one_process_is_the_first_and_sums_what_it_has() -> None:
    alone = Processes()
    assert is_first()
    assert alone.is_first
    assert alone.gather({"a": 1}) == [{"a": 1}]
    assert alone.agree([2]) == [2]
    done: list[int] = []
    alone.once(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(KeyError), alone.first():
        raise KeyError


def test_two_processes_train_as_one_does(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    check_two_processes(model_v1, model_v2, tmp_path, fsdp=False)
