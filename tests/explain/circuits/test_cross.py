import copy
from typing import Any

import peft
import pytest
import torch

from tests.explain.circuits.made import layout_of, prompts, tuned
from uphold.core.errors import ModelError, UsageError
from uphold.explain.circuit import CircuitConfig, circuit
from uphold.explain.circuits.compare import by_layer_and_role
from uphold.explain.circuits.cross import (
    ceiling,
    cross_effects,
    cross_patching,
    cross_screen,
    shared_parts,
)
from uphold.explain.circuits.measures import of_all
from uphold.explain.circuits.paths import path_patching
from uphold.explain.circuits.prompts import OTHER, Node, nodes_of
from uphold.explain.cmap import CmapConfig, cmap
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.run import run

LAST = tuple(Node(layer, head, "last") for layer in (1, 3) for head in range(4))
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


def wrapped(family: str, delta: float = 0.0) -> Layout:
    """The decoder with a LoRA adapter, whose change is zero or not."""
    config = peft.LoraConfig(r=2, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = peft.get_peft_model(copy.deepcopy(layout_of(family).model), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += delta * torch.randn(weight.shape, generator=generator)
    return read_layout(model.eval())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["output", "input"])
@pytest.mark.parametrize("wrap", [False, True])
def test_patching_across_equal_models_changes_no_bit(family: str, side: Any, wrap: bool) -> None:
    layout = layout_of(family)
    other = wrapped(family) if wrap else read_layout(copy.deepcopy(layout.model))
    some = prompts(layout, 0)
    early = tuple(nodes_of(layout, ["early"]))
    groups = {"none": (), "last": LAST, "early": early, "both": (*LAST, *early)}
    found = cross_patching(layout, other, some, groups, side=side, measure="logit-difference", batch=3)
    for name in groups:
        assert torch.equal(found[name], found["none"])
    effects = cross_effects(layout, other, some, nodes_of(layout, ["last", OTHER]), measure="probability")
    assert (effects.change == 0).all()


def test_wrapping_changes_nothing() -> None:
    plain, other = layout_of("llama"), wrapped("llama")
    clean, corrupt = prompts(plain, 0), prompts(plain, 1)
    nodes = nodes_of(plain, ["last"])
    found = [path_patching(layout, clean, corrupt, nodes).changed for layout in (plain, other)]
    assert torch.equal(*found)
    config = CircuitConfig(target=0.4, subsets=2, randoms=2)
    many = clean.rows(torch.arange(20) % 5)
    reports = [circuit(layout.model, many, config=config).to_dict() for layout in (plain, other)]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_everything_of_the_donor_gives_the_donor_where_the_rest_is_shared(family: str) -> None:
    layout, donor = layout_of(family), wrapped(family, 0.3)
    some = prompts(layout, 0)
    wanted = of_all("logit-difference", some)(run(donor, some.inputs, at=some.at))
    before = of_all("logit-difference", some)(run(layout, some.inputs, at=some.at))
    assert (wanted - before).abs().max() > 0.1
    found = ceiling(layout, donor, some, measure="logit-difference", batch=2)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert shared_parts(layout, donor) == ()


def test_embeddings_that_differ_are_said() -> None:
    notes = shared_parts(layout_of("gpt2"), tuned("gpt2", ("wte",), 0.01))
    assert len(notes) == 2  # tied
    assert notes[0].startswith("the embeddings differ (cosine 0.9")
    assert "little in common" in " ".join(shared_parts(layout_of("gpt2"), read_layout(_fresh())))


def _fresh() -> Any:
    model: Any = copy.deepcopy(layout_of("gpt2").model)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    return model


def test_models_of_two_architectures_are_refused() -> None:
    some = prompts(layout_of("gpt2"), 0)
    with pytest.raises(ModelError, match=r"not of one architecture \(model type gpt2 and gpt_neox, "):
        cmap(layout_of("gpt2").model, layout_of("gpt_neox").model, some)
    with pytest.raises(ModelError, match="key heads 4 and 2"):
        cross_screen(layout_of("gpt2"), layout_of("llama"), some, LAST)
    with pytest.raises(ModelError, match="no attention heads"):
        circuit(torch.nn.Linear(2, 2), some)


def test_queries_of_the_first_block_by_input_are_its_outputs() -> None:
    # The donor differs in nothing but queries: of block 0, both read the same.
    layout, donor = layout_of("llama"), tuned("llama", ("layers.0.self_attn.q_proj",))
    some = prompts(layout, 0)
    group = {"first": tuple(Node(0, head, "early") for head in (0, 1, 3))}
    by_input = cross_patching(layout, donor, some, group, side="input", parts=["query"], measure="logit-difference")
    by_output = cross_patching(layout, donor, some, group, measure="logit-difference")
    torch.testing.assert_close(by_input["first"], by_output["first"], atol=1e-5, rtol=1e-4)
    clean = cross_patching(layout, donor, some, {"": ()}, measure="logit-difference")[""]
    assert (by_input["first"] - clean).abs().max() > 1e-3


def test_shared_keys_do_not_leak_into_other_heads() -> None:
    # Heads 0 and 1 share keys and values. Head 0 is patched; what leaks through head 1 would show.
    layout, donor = layout_of("llama"), tuned("llama", ("layers.3.self_attn.v_proj",))
    some = prompts(layout, 0)
    groups = {"one": (Node(3, 0, "last"),), "other": (Node(3, 1, "last"),), "both": LAST[4:6], "none": ()}
    found = cross_patching(layout, donor, some, groups, side="input", measure="probability")
    values = cross_patching(layout, donor, some, groups, side="input", parts=["value"], measure="probability")
    for name in groups:
        torch.testing.assert_close(found[name], values[name])
    assert not torch.equal(found["one"], found["both"])
    assert not torch.equal(found["one"], found["other"])


def test_small_changes_are_estimated_by_gradients() -> None:
    layout = layout_of("gpt2")
    donor = wrapped("gpt2", 0.003)
    some = prompts(layout, 0)
    nodes = nodes_of(layout, ["last", "early", OTHER])
    exact = cross_effects(layout, donor, some, nodes, measure="logit-difference", batch=2)
    estimated = cross_screen(layout, donor, some, nodes, batch=2)
    pair = torch.stack([exact.change, torch.tensor([estimated[node] for node in nodes])])
    assert torch.corrcoef(pair)[0, 1] > 0.98


def test_a_report_says_what_was_patched() -> None:
    layout, donor = layout_of("gpt2"), tuned("gpt2", ("attn",))
    some = prompts(layout, 0)
    report = cmap(layout.model, donor.model, some, config=CmapConfig(randoms=2))
    assert report.old == 1
    assert set(report.groups) == set(by_layer_and_role(nodes_of(layout, ["last", "early", OTHER])))
    assert report.prompts == 5
    assert "block 3 at last: new in old" in str(report)
    assert report.to_dict()["groups"]["block 0 at last"]["nodes"][0] == "head.0.0@last"
    everything = cmap(layout.model, donor.model, some, groups={"all": nodes_of(layout, ["last", "early", OTHER])})
    assert everything.groups["all"].random_in_old is None
    if report.new == report.old:
        with pytest.raises(UsageError, match="no gain"):
            report.recovered("block 0 at last")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown side 'ouput': did you mean 'output'"):
        CmapConfig("ouput")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a circuit needs a target"):
        CircuitConfig(target=0)
    with pytest.raises(UsageError, match="at least 1 of confirm"):
        CircuitConfig(confirm=0)


def test_a_circuit_is_found_and_measured_in_both_versions() -> None:
    layout, donor = layout_of("gpt2"), wrapped("gpt2", 0.02)
    many = prompts(layout, 0, padded=False).rows(torch.arange(40) % 5)
    config = CircuitConfig(target=0.8, confirm=30, subsets=3, randoms=3)
    report = circuit(layout.model, many, new=donor.model, config=config)
    assert report.old.model == 1
    assert len(report.effects.nodes) == 30
    assert report.new is not None
    assert 0 <= (report.overlap or 0) <= 1
    assert "the new model's own circuit has" in str(report)
    assert report.to_dict()["old"]["faithfulness"] == report.old.circuit
