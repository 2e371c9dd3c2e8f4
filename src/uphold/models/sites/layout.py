"""Where the sites of a model are: found by names and shapes, on the model as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from uphold.core.errors import ModelError, UsageError, unknown_name
from uphold.models.neurons.neurons import KNOWN as DOWN_PROJECTIONS
from uphold.models.sites.site import PER_HEAD, Kind, Site
from uphold.models.stages.split import find_blocks

_OUTPUTS = ("self_attn.o_proj", "attn.c_proj", "attention.dense", "self_attn.dense", "self_attention.dense",
            "self_attn.out_proj", "attn.attention.out_proj", "attn.out_proj", "attention.o_proj")  # fmt: skip
"""Output projections of attention in Llama, Gemma, Qwen, Mistral / GPT-2 / GPT-NeoX / Phi / BLOOM, Falcon / OPT /
GPT-Neo / GPT-J, CodeGen / others."""
_SPLIT = ("q_proj", "k_proj", "v_proj")
_JOINED = ("c_attn", "qkv_proj")
"""Queries of all heads, then keys, then values."""
_BY_HEAD = ("query_key_value",)
"""Query, key and value of the first head, then those of the second."""
_OTHER_ORDER = ("codegen", "gpt_bigcode")
"""Model types whose joined projection is in neither order."""


class Place(NamedTuple):
    """A slice of the numbers that go into a module or come out of it."""

    path: str
    module: nn.Module
    side: Literal["in", "out"]
    start: int
    stop: int
    """The last dimension from `start` to `stop`; all of it where `stop` is 0."""


@dataclass(frozen=True)
class Layout:
    """A model, and where its sites are."""

    model: Any
    blocks: tuple[nn.Module, ...]
    """Of the decoder, in order; empty where the model has no list of blocks."""
    block_path: str
    heads: int
    key_heads: int
    """Fewer than `heads` where several heads share keys and values."""
    head_width: int

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def sites(self, *kinds: Kind) -> list[Site]:
        """All sites of these kinds, by block."""
        found = []
        for layer in range(self.layers):
            for kind in kinds:
                if kind in PER_HEAD:
                    count = self.heads if kind in ("head", "query") else self.key_heads
                    found += [Site(kind, layer, head) for head in range(count)]
                else:
                    found.append(Site(kind, layer))
        return found

    def place(self, site: Site) -> Place:
        """Where a site is.

        Raises:
            ModelError: the model has no such part, or none that is known by name.
            UsageError: a number or a path is wrong.
        """
        if site.kind in ("module", "module-input"):
            return Place(*self._module(site.path), "out" if site.kind == "module" else "in", 0, 0)
        if not self.layers:
            raise ModelError(
                f"site {site}: {type(self.model).__name__} has no list of several blocks; name the module: module:PATH"
            )
        first = -1 if site.kind == "residual" else 0
        if not first <= site.layer < self.layers:
            raise UsageError(f"site {site}: the model has {self.layers} blocks, 0 to {self.layers - 1}")
        if site.kind == "residual":
            layer = max(site.layer, 0)
            side: Literal["in", "out"] = "in" if site.layer < 0 else "out"
            return Place(f"{self.block_path}.{layer}", self.blocks[layer], side, 0, 0)
        if site.kind in ("hidden", "mlp"):
            return self._feed_forward(site)
        return self._attention(site)

    def _module(self, path: str) -> tuple[str, nn.Module]:
        modules = dict(self.model.named_modules())
        found = [name for name in modules if name == path or name.endswith(f"base_model.model.{path}")]
        if not found:
            raise unknown_name("module", path, list(modules), "print(model) lists them.")
        return found[0], modules[found[0]]

    def _feed_forward(self, site: Site) -> Place:
        path, down = self._one(site, DOWN_PROJECTIONS, "feed-forward down-projection")
        if site.kind == "hidden":
            return Place(path, down, "in", 0, 0)
        # Where the block itself calls the down-projection, what that returns is all the feed-forward part writes.
        parent = path.rpartition(".")[0]
        whole = parent if parent != f"{self.block_path}.{site.layer}" else path
        return Place(whole, self.model.get_submodule(whole), "out", 0, 0)

    def _attention(self, site: Site) -> Place:
        path, output = self._one(site, _OUTPUTS, "attention's output projection")
        if site.kind == "attention":
            return Place(path, output, "out", 0, 0)
        count = self.heads if site.kind in ("head", "query") else self.key_heads
        if not 0 <= site.head < count:
            what = "heads" if count == self.heads else "key-value heads"
            raise UsageError(f"site {site}: the model has {count} {what}, 0 to {count - 1}")
        if site.kind == "head":
            return self._slice(path, output, "in", site.head * self.head_width)
        return self._projection(site, path.rpartition(".")[0])

    def _projection(self, site: Site, attention: str) -> Place:
        part = ("query", "key", "value").index(site.kind)
        inside = dict(self.model.get_submodule(attention).named_children())
        if _SPLIT[part] in inside:
            return self._slice(f"{attention}.{_SPLIT[part]}", inside[_SPLIT[part]], "out", site.head * self.head_width)
        kind = getattr(getattr(self.model, "config", None), "model_type", "")
        for name in (*_JOINED, *_BY_HEAD) if kind not in _OTHER_ORDER else ():
            if name not in inside:
                continue
            if name in _JOINED:
                start, parts = (
                    (0, self.heads, self.heads + self.key_heads)[part] + site.head,
                    self.heads + 2 * self.key_heads,
                )
            else:
                start, parts = 3 * site.head + part, 3 * self.heads
            if _outputs(inside[name]) == parts * self.head_width:
                return self._slice(f"{attention}.{name}", inside[name], "out", start * self.head_width)
        raise ModelError(
            f"site {site}: {attention} has no projection of a name and order known here ({', '.join(inside)}); "
            "name the module: module:PATH"
        )

    def _slice(self, path: str, module: nn.Module, side: Literal["in", "out"], start: int) -> Place:
        return Place(path, module, side, start, start + self.head_width)

    def _one(self, site: Site, names: Sequence[str], what: str) -> tuple[str, nn.Module]:
        found = dict(_ending(self.blocks[site.layer], names))
        if len(found) != 1:
            raise ModelError(
                f"site {site}: block {site.layer} has {len(found) or 'no'} modules known as {what}; "
                "name the module: module:PATH"
            )
        ((path, module),) = found.items()
        return f"{self.block_path}.{site.layer}.{path}", module


def read_layout(model: Any) -> Layout:
    """Find the blocks and heads of a model.

    Args:
        model: a decoder of transformers, one that carries a PEFT adapter, or any `nn.Module`; a module without a list
            of blocks has sites by path only.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    try:
        path = find_blocks(model)
    except UsageError:
        return Layout(model, (), "", 0, 0, 0)
    blocks = tuple(model.get_submodule(path).children())
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    width = 0
    output = next((module for _, module in _ending(blocks[0], _OUTPUTS)), None)
    if heads and output is not None:
        width = int(getattr(config, "head_dim", None) or _inputs(output) // heads)
    return Layout(model, blocks, path, heads, key_heads, width)


def check_one_architecture(one: Layout, other: Layout) -> None:
    """Refuse two models whose sites do not correspond.

    Raises:
        ModelError: they are not of one architecture.
    """
    found = [_shape(one), _shape(other)]
    if found[0] != found[1]:
        different = [f"{name} {value} and {found[1][name]}" for name, value in found[0].items() if value !=
                     found[1][name]]  # fmt: skip
        raise ModelError(
            f"the models are not of one architecture ({', '.join(different)}): what one holds can be put into the "
            "other only where one was tuned from the other"
        )


def _shape(layout: Layout) -> dict[str, Any]:
    config: Any = getattr(layout.model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    wide = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim"))
    return {
        "model type": getattr(config, "model_type", type(layout.model).__name__),
        "blocks": layout.layers,
        "heads": layout.heads,
        "key heads": layout.key_heads,
        "head width": layout.head_width,
        "hidden width": getattr(config, "hidden_size", None),
        "feed-forward width": next((value for value in wide if value is not None), None),
    }


def _ending(block: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    for path, module in block.named_modules():
        if any(path == name or path.endswith(f".{name}") for name in names):
            yield path, module


def _inputs(module: Any) -> int:
    module = getattr(module, "base_layer", module)
    return int(module.in_features if hasattr(module, "in_features") else module.weight.shape[0])


def _outputs(module: Any) -> int:
    module = getattr(module, "base_layer", module)
    return int(module.out_features if hasattr(module, "out_features") else module.weight.shape[1])
