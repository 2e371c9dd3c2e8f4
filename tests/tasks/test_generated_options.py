from __future__ import annotations

import pytest

from uphold.core.errors import UsageError
from uphold.tasks.generated import dataset_names
from uphold.tasks.generated_options import generated_from_mapping, generated_from_options, registered_names


def test_the_names_read_off_the_source_are_those_registered() -> None:
    assert registered_names() == dataset_names()


def test_options_go_to_the_task_or_to_the_dataset() -> None:
    task = generated_from_options("chain_sum", size=10, max_terms=3, min_terms=3, max_new_tokens=9)

    assert task.name == "rg:chain_sum"
    assert task.decoding.max_new_tokens == 9
    assert {instance.extra["metadata"]["num_terms"] for instance in task.instances("test")} == {3}


def test_an_unknown_option_is_suggested_from_both() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'max_term': did you mean 'max_terms'. It stands in 'mine'"):
        generated_from_mapping("chain_sum", {"max_term": 3}, "mine")
    with pytest.raises(UsageError, match="unknown option 'tset': did you mean 'test'"):
        generated_from_mapping("chain_sum", {"tset": 3}, "mine")
