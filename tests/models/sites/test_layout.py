from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, CodeGenConfig, FalconConfig, GPTBigCodeConfig

from tests.models.sites.small import CONFIGS, KINDS, decoder, inputs, layout_of
from uphold.core.errors import ModelError, UsageError
from uphold.models.sites.layout import read_layout
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Site

FALCON: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("family", CONFIGS)
def test_sites_have_the_shapes_that_the_config_says(family: str) -> None:
    layout = layout_of(family)
    config = layout.model.config
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert (layout.layers, layout.heads, layout.key_heads) == (4, 4, key_heads)
    assert len(layout.sites("head", "value", "mlp")) == 4 * (4 + key_heads + 1)
    found, _ = read(layout, inputs(0), layout.sites(*KINDS))
    for site, values in found.items():
        hidden = 128 if family == "gpt2" else 64
        width = {"residual": 32, "attention": 32, "mlp": 32, "hidden": hidden}.get(site.kind, 8)
        assert values.shape == (5, 10, width), site


@pytest.mark.parametrize("family", CONFIGS)
def test_heads_and_feed_forward_parts_add_up_to_the_residual_stream(family: str) -> None:
    layout = layout_of(family)
    if family == "gemma3":
        pytest.skip("norms what attention and feed-forward part write")
    found, _ = read(layout, inputs(0), [*layout.sites("residual", "attention", "mlp"), Site("residual", -1)])
    for layer in range(4):
        written = found[Site("attention", layer)] + found[Site("mlp", layer)]
        torch.testing.assert_close(found[Site("residual", layer - 1)] + written, found[Site("residual", layer)])


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_values_of_the_first_position_are_what_its_heads_give(family: str) -> None:
    # The first position attends to itself alone.
    layout = layout_of(family)
    heads = layout.sites("head")
    found, _ = read(layout, inputs(0), [*heads, *layout.sites("value")])
    for site in heads:
        value = Site("value", site.layer, site.head * layout.key_heads // layout.heads)
        torch.testing.assert_close(found[site][:, 0], found[value][:, 0])


def test_an_adapter_that_changes_nothing_changes_nothing() -> None:
    plain = layout_of("llama")
    wrapped = read_layout(
        get_peft_model(
            type(plain.model)(plain.model.config).eval(),
            LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"]),
        )
    )
    theirs = wrapped.model.get_base_model().state_dict()
    for name, value in plain.model.state_dict().items():
        theirs[name if name in theirs else name.replace(".weight", ".base_layer.weight")].copy_(value)
    sites = plain.sites(*KINDS)
    assert wrapped.sites("head", "key") == plain.sites("head", "key")
    ours, logits = read(plain, inputs(0), sites)
    found, wrapped_logits = read(wrapped, inputs(0), sites)
    assert torch.equal(logits, wrapped_logits)
    assert all(torch.equal(ours[site], found[site]) for site in sites)
    inner = Site("module", path="model.layers.1.mlp")
    assert torch.equal(read(wrapped, inputs(0), [inner])[0][inner], ours[Site("mlp", 1)])


def test_any_module_has_sites_by_path() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layout = read_layout(net)
    values = torch.randn(6, 3)
    found, output = read(layout, values, [Site("module", path="0"), Site("module-input", path="2")])
    torch.testing.assert_close(found[Site("module", path="0")], net[0](values))
    torch.testing.assert_close(found[Site("module-input", path="2")].relu(), net[1](net[0](values)))
    assert torch.equal(output, run(layout, values))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("residual", 4), "4 blocks, 0 to 3"),
        (Site("head", 0, 4), "4 heads, 0 to 3"),
        (Site("key", 0, 2), "2 key-value heads, 0 to 1"),
        (Site("module", path="model.layer"), "unknown module 'model.layer': did you mean"),
    ],
)
def test_a_site_that_is_not_there_is_refused(site: Site, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layout_of("llama").place(site)


def test_a_part_of_an_unknown_name_is_to_be_named_by_path() -> None:
    layout = read_layout(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    with pytest.raises(ModelError, match="name the module: module:PATH"):
        layout.place(Site("mlp", 0))


def test_the_model_is_left_as_it_was() -> None:
    model = decoder("llama")
    before = dict(model.named_modules())
    run(layout_of("llama"), inputs(0))
    assert dict(model.named_modules()) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        (BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4), True),
        (FalconConfig(**FALCON, multi_query=False), True),
        (FalconConfig(**FALCON, multi_query=True), False),
        (FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2), False),
        (GPTBigCodeConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, multi_query=False), False),
        (CodeGenConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64), False),
    ],
)
def test_joined_projections_of_another_order_are_refused(config: Any, fits: bool) -> None:
    torch.manual_seed(0)
    layout = read_layout(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())
    heads = layout.sites("head")
    if not fits:
        with pytest.raises(ModelError, match=r"name and order known here.*module:PATH"):
            layout.place(Site("value", 0, 0))
        return
    given = {name: value[:, :6] for name, value in inputs(0).items()}
    found, _ = read(layout, given, [*heads, *layout.sites("value")])
    for site in heads:
        torch.testing.assert_close(found[site][:, 0], found[Site("value", site.layer, site.head)][:, 0])


def test_a_model_without_a_list_of_blocks_has_no_sites_of_blocks() -> None:
    layout = read_layout(nn.Linear(3, 3))
    for site in (Site("residual", -1), Site("head", 0, 0), Site("mlp", 0)):
        with pytest.raises(ModelError, match=r"Linear has no list of several blocks; name the module: module:PATH"):
            layout.place(site)
