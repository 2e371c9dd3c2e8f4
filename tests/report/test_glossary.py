from __future__ import annotations

from uphold.measure.continuous import _NAMES
from uphold.measure.flips import DEFINITIONS as FLIPS
from uphold.report.glossary import DEFINITIONS, EFFECTS, KINDS, MARKS
from uphold.report.instances import CODES, repair_effect


def test_every_rate_that_is_measured_is_explained() -> None:
    assert {entry.name for entry in FLIPS} | {name for name, *_ in _NAMES} == DEFINITIONS.keys()


def test_every_kind_has_a_name_and_a_mark_and_every_effect_an_explanation() -> None:
    assert set(CODES) == KINDS.keys() == MARKS.keys()
    effects = {repair_effect(before, after) for before in CODES for after in CODES}
    assert effects <= EFFECTS.keys()
