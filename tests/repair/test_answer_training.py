from __future__ import annotations

from dataclasses import replace

import pytest

from uphold.core.records import Record
from uphold.repair.answer_training import old_probabilities, option_scales


def test_likelihoods_are_scaled_as_the_metric_compares_them() -> None:
    options = ("ab", "ü")
    assert option_scales("acc", options) == (1.0, 1.0)
    assert option_scales("acc_norm", options) == (0.5, 1.0)
    assert option_scales("acc_bytes", options) == (0.5, 0.5)


def test_a_record_without_a_known_choice_teaches_nothing() -> None:
    record = Record("1", "p", "a", "nonsense", "nonsense", False, 0.0)
    assert old_probabilities(record, ("a", "b"), (1.0, 1.0), 2.0, 0.1) is None
    assert old_probabilities(replace(record, output="b"), ("a", "b"), (1.0, 1.0), 2.0, 0.1) == pytest.approx(
        (0.05, 0.95)
    )
    likely = replace(record, option_logprobs=(0.0, 0.0))
    assert old_probabilities(likely, ("a", "b"), (1.0, 1.0), 2.0, 0.1) == (0.5, 0.5)
