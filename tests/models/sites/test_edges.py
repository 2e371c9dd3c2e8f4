from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, GPTNeoXConfig

from tests.models.sites.small import AT, CONFIGS, ROWS, difference, inputs, layout_of
from uphold.core.errors import ModelError, UsageError
from uphold.models.sites.edges import Edge, Stream, edge_attributions, patched_edges, read_stream
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import read_layout
from uphold.models.sites.resume import keep
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Site

EVERY = torch.arange(ROWS)


def metric(logits: torch.Tensor) -> torch.Tensor:
    return difference(logits, EVERY)


def another_run(stream: Stream, senders: list[Site]) -> dict[Site, torch.Tensor]:
    found, _ = read(stream.layout, inputs(1), [stream.writing(sender) for sender in senders])
    return {sender: found[stream.writing(sender)] for sender in senders}


@pytest.mark.parametrize("family", CONFIGS)
def test_parts_that_read_are_found_and_what_they_read_is_the_sum_of_what_is_written(family: str) -> None:
    stream = read_stream(layout_of(family), inputs(0))
    assert stream.parallel == (family == "gpt_neox")
    senders = [Site("residual", -1), *stream.layout.sites("attention", "mlp")]
    sites = {one: stream.writing(one) for one in senders}
    reads = {one: stream.reading(one) for one in stream.receivers()}
    found, _ = read(stream.layout, inputs(0), [*sites.values(), *reads.values()])
    for receiver, site in reads.items():
        written = sum(found[sites[one]] for one in senders if stream.is_behind(one, receiver))
        torch.testing.assert_close(found[site], written, atol=1e-5, rtol=1e-4)


def test_heads_add_up_to_what_their_attention_writes() -> None:
    for family in ("llama", "gpt2"):
        stream = read_stream(layout_of(family), inputs(0))
        heads = stream.layout.sites("head")
        attentions = stream.layout.sites("attention")
        found, _ = read(stream.layout, inputs(0), [*heads, *attentions])
        other = another_run(stream, [*heads, *attentions])
        for part in attentions:
            mine = [head for head in heads if head.layer == part.layer]
            total = sum(stream.written(head, other[head] - found[head]) for head in mine)
            torch.testing.assert_close(total, other[part] - found[part], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_small_changes_do_what_is_estimated_on_every_edge(family: str) -> None:
    stream = read_stream(layout_of(family), inputs(0))
    kinds = ("attention", "mlp") if family == "gemma3" else ("head", "mlp")
    senders = [Site("residual", -1), *stream.layout.sites(*kinds)]  # type: ignore[arg-type]
    sites = {one: stream.writing(one) for one in senders}
    base, logits = read(stream.layout, inputs(0), list(sites.values()), at=AT)
    far = another_run(stream, senders)
    near = {one: base[sites[one]] + 1e-3 * (far[one] - base[sites[one]]) for one in senders}
    where = inputs(0)["attention_mask"].bool()
    edges = stream.edges(senders)
    estimated = edge_attributions(stream, inputs(0), near, metric, at=AT, where=where)
    assert set(estimated) == set(edges)
    kept = keep(stream.layout, inputs(0), AT)
    exact = patched_edges(stream, kept, near, edges, difference, where=where) - metric(logits)
    guessed = torch.stack([estimated[edge] for edge in edges])
    scale = exact.abs().max()
    torch.testing.assert_close(guessed / scale, exact / scale, atol=2e-2, rtol=0)


def test_all_edges_of_a_sender_into_the_logits_are_its_direct_effect() -> None:
    stream = read_stream(layout_of("llama"), inputs(0))
    last = Site("mlp", stream.layout.layers - 1)
    source = another_run(stream, [last])
    kept = keep(stream.layout, inputs(0), AT)
    assert stream.edges([last]) == [Edge(last, None)]
    found = patched_edges(stream, kept, source, [Edge(last, None)], difference)
    # Nothing but the logits reads what the last part writes: the edge is the whole patch.
    whole = run(stream.layout, inputs(0), [Edit(last, source[last])], at=AT)
    torch.testing.assert_close(found[0], metric(whole), atol=1e-5, rtol=1e-4)


def test_the_same_run_changes_nothing_and_only_chosen_positions_count() -> None:
    stream = read_stream(layout_of("gpt2"), inputs(0))
    senders = stream.layout.sites("head", "mlp")
    edges = stream.edges(senders)
    kept = keep(stream.layout, inputs(0), AT)
    own, _ = read(stream.layout, inputs(0), senders)
    assert all(not value.any() for value in edge_attributions(stream, inputs(0), own, metric, at=AT).values())
    torch.testing.assert_close(
        patched_edges(stream, kept, own, edges[:3], difference), metric(kept.logits).expand(3, -1)
    )
    nowhere = torch.zeros(5, 10, dtype=torch.bool)
    other = another_run(stream, senders)
    found = edge_attributions(stream, inputs(0), other, metric, at=AT, where=nowhere)
    assert all(not value.any() for value in found.values())


def test_integrated_gradients_of_the_embeddings_edges_add_up() -> None:
    stream = read_stream(layout_of("gpt2"), inputs(0))
    entry = Site("residual", -1)
    source = another_run(stream, [entry])
    found = edge_attributions(stream, inputs(0), source, metric, at=AT, steps=30)
    assert set(found) == set(stream.edges([entry]))
    # Whatever reads the stream reads the embeddings: their edges hold the whole change.
    far = run(stream.layout, inputs(1), at=AT)
    near = run(stream.layout, inputs(0), at=AT)
    torch.testing.assert_close(sum(found.values()), metric(far) - metric(near), atol=0.02, rtol=0.05)
    with pytest.raises(UsageError, match=r"residual\.-1"):
        edge_attributions(stream, inputs(0), another_run(stream, [Site("mlp", 1)]), metric, steps=2)


def test_an_edge_against_the_order_is_refused() -> None:
    stream = read_stream(layout_of("gpt_neox"), inputs(0))
    kept = keep(stream.layout, inputs(0), AT)
    backwards = Edge(Site("mlp", 2), Site("attention", 1))
    with pytest.raises(UsageError, match=r"mlp\.2 -> attention\.1"):
        patched_edges(stream, kept, another_run(stream, [Site("mlp", 2)]), [backwards], difference)
    assert not stream.is_behind(Site("attention", 1), Site("mlp", 1))


def test_models_whose_parts_cannot_be_told_apart_are_refused() -> None:
    config = FalconConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True, parallel_attn=True
    )
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match=r"norm of a name known here stands before mlp\.0"):
        read_stream(read_layout(model), inputs(0))
    with pytest.raises(ModelError, match="no list of blocks"):
        read_stream(read_layout(torch.nn.Linear(2, 2)), inputs(0))


def test_a_part_that_is_scaled_on_its_way_is_refused() -> None:
    model: Any = AutoModelForCausalLM.from_config(GPTNeoXConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )).eval()  # fmt: skip
    block = model.gpt_neox.layers[0]
    block.post_mlp_dropout = torch.nn.Hardtanh(-1e-3, 1e-3)
    with pytest.raises(ModelError, match="does not add"):
        read_stream(read_layout(model), inputs(0))
