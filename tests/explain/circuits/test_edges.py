import json

import pytest
import torch

from tests.explain.circuits.made import layout_of, prompts, tuned
from uphold.core.errors import ModelError, UsageError
from uphold.explain.circuits.measures import of_all
from uphold.explain.edges import EdgesConfig, edges
from uphold.models.sites.edges import ENTRY, Edge
from uphold.models.sites.hooks import Edit
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Site

FEW = EdgesConfig(confirm=12, steps=3, batch=2)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_strongest_edges_are_patched_and_batches_do_not_matter(family: str) -> None:
    layout = layout_of(family)
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    found = edges(layout.model, clean, corrupt, config=FEW)
    assert len(found.exact) == 12
    assert set(found.exact) <= set(found.estimates)
    least = min(abs(found.estimates[edge]) for edge in found.exact)
    assert all(abs(value) <= least + 1e-9 for edge, value in found.estimates.items() if edge not in found.exact)
    sizes = [abs(value) for _, value in found.ranked()]
    assert sizes == sorted(sizes, reverse=True)
    once = edges(layout.model, clean, corrupt, config=EdgesConfig(confirm=12, steps=3))
    for edge, value in found.estimates.items():
        assert once.estimates[edge] == pytest.approx(value, abs=1e-4)
    assert json.loads(json.dumps(found.to_dict()))["exact"]
    assert str(found.ranked()[0][0]) in str(found).splitlines()[1]


def test_the_last_part_acts_by_its_edge_to_the_logits_alone() -> None:
    layout = layout_of("gpt2")
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    last = Site("mlp", layout.layers - 1)
    found = edges(layout.model, clean, corrupt, config=EdgesConfig(confirm=10_000))
    assert set(found.exact) == set(found.estimates)
    held, _ = read(layout, corrupt.inputs, [last], at=corrupt.at)
    metric = of_all("logit-difference", clean)
    whole = metric(run(layout, clean.inputs, [Edit(last, held[last])], at=clean.at)).mean()
    assert found.exact[Edge(last, None)] == pytest.approx(float(whole) - found.clean, abs=1e-4)
    assert Edge(last, last) not in found.estimates
    assert Edge(ENTRY, Site("attention", 0)) in found.estimates


def test_what_another_version_writes_is_put_in() -> None:
    layout, later = layout_of("gpt2"), tuned("gpt2", size=0.005)
    clean = prompts(layout, 0)
    same = edges(layout.model, clean, other=layout.model, config=FEW)
    assert max(map(abs, same.exact.values())) < 1e-6
    found = edges(layout.model, clean, other=later.model, config=FEW)
    metric = of_all("logit-difference", clean)
    assert found.patched == pytest.approx(float(metric(run(later, clean.inputs, at=clean.at)).mean()), abs=1e-5)
    # Both versions embed alike.
    assert all(value == 0 for edge, value in found.estimates.items() if edge.sender == ENTRY)
    assert found.agreement is not None
    assert found.agreement > 0.8


def test_a_change_in_one_part_shows_in_its_edges_alone() -> None:
    layout, later = layout_of("gpt2"), tuned("gpt2", parts=("h.2.mlp",))
    found = edges(layout.model, prompts(layout, 0), other=later.model, config=EdgesConfig(confirm=3))
    assert {edge.sender for edge, value in found.estimates.items() if value and edge.sender.layer <= 2} == {
        Site("mlp", 2)
    }


def test_bad_calls_are_refused() -> None:
    layout = layout_of("gpt2")
    clean = prompts(layout, 0)
    with pytest.raises(UsageError, match=r"corrupt=.*other="):
        edges(layout.model, clean)
    with pytest.raises(UsageError, match="one for each"):
        edges(layout.model, clean, clean.rows(torch.arange(2)))
    with pytest.raises(ModelError, match="one architecture"):
        edges(layout.model, clean, other=layout_of("llama").model)
    for wrong in ({"senders": ("residual",)}, {"senders": ("head", "attention")}, {"steps": 0}, {"measure": "correct"}):
        with pytest.raises(UsageError):
            EdgesConfig(**wrong)  # type: ignore[arg-type]
