from __future__ import annotations

import pytest

from uphold.core.registry import method
from uphold.repair.search_plan import kind_of


@pytest.mark.parametrize("name", ["ensemble", "bcr", "gated-fusion"])
def test_each_is_registered_with_its_paper_and_what_a_search_tries(name: str) -> None:
    found = method("repair", name)
    assert found.paper
    assert found.summary.endswith("(both are asked).")
    assert found.config is not None
    for option, values in found.config.SEARCH.items():  # type: ignore[attr-defined]
        for value in values:
            found.config(**{option: value})
    assert kind_of(found) == "pair"
    assert not found.config().force
