from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from uphold.core.errors import UsageError
from uphold.models.train import History
from uphold.repair.distill import ArmSpec, _check_gain, _notes


def history(chosen: dict[str, float]) -> History:
    start = {"accuracy": 0.60, "nfr": 0.10}
    epochs: list[dict[str, Any]] = [{"epoch": 0, "validation": start}, {"epoch": 1, "validation": chosen}]
    return History(epochs, chosen=1)


@pytest.mark.parametrize(
    ("chosen", "helped"),
    [
        ({"accuracy": 0.60, "nfr": 0.09}, True),
        ({"accuracy": 0.596, "nfr": 0.05}, True),
        ({"accuracy": 0.60, "nfr": 0.10}, False),
        ({"accuracy": 0.59, "nfr": 0.05}, False),
    ],
)
def test_a_repair_that_validation_does_not_bear_out_says_so(chosen: dict[str, float], helped: bool) -> None:
    spec = ArmSpec("repaired", "MUSCLE", lambda old, new: None)  # type: ignore[arg-type,return-value]
    control = ArmSpec("control", "control", spec.objective, control=True)
    comparison: Any = SimpleNamespace()
    assert _notes([(control, history(chosen), comparison)]) == []
    notes = _notes([(spec, history(chosen), comparison)])
    assert bool(notes) != helped
    assert all("did not help on validation" in note for note in notes)


def test_a_clearly_worse_update_is_refused_unless_forced() -> None:
    _check_gain(0.60, 0.585, force=False)
    _check_gain(0.60, 0.30, force=True)
    with pytest.raises(UsageError, match=r"worse than the old one on validation \(57\.0% against 60\.0%\)"):
        _check_gain(0.60, 0.57, force=False)
