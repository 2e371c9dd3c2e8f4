"""What `benchmarks/explain.py` measures: the same patches, attributions and training steps by three engines.

An environment has one engine, so each is imported where it is used, and nothing of this project with the peers'.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SEED, STEPS, LR = 0, 10, 0.01


class Parts(NamedTuple):
    """What is timed: the preparation, and the work with what it returns."""

    prepare: Callable[[], Any]
    work: Callable[[Any], Any]


class Case(NamedTuple):
    """A model of transformers, what an engine makes of it, and the pairs as tensors."""

    model: Any
    wrapped: Any
    """This library's `Layout`, a `TransformerBridge` or an `NNsight`: one of each model, as they change it in place."""
    base: Any
    source: Any
    right: Any
    wrong: Any
    layers: list[int]
    positions: list[int]

    @property
    def heads(self) -> int:
        """Of each layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def every_layer(self) -> range:
        """Also those that are not patched."""
        return range(self.model.config.num_hidden_layers)

    @property
    def middle(self) -> tuple[int, int]:
        """Layer and position of the subspace."""
        return len(self.every_layer) // 2, self.base.shape[1] // 2

    def candidates(self) -> list[tuple[int, int, int]]:
        """Layer, position and head of every patch."""
        return [
            (layer, position, head)
            for layer in self.layers
            for position in self.positions
            for head in range(self.heads)
        ]

    def metric(self, logits: Any, rows: Any = slice(None)) -> Any:
        """Difference of two logits at the last position, of each row."""
        last = logits[:, -1] if logits.dim() == 3 else logits
        right, wrong = self.right[rows], self.wrong[rows]
        return (last.gather(1, right[:, None]) - last.gather(1, wrong[:, None]))[:, 0]

    def metric_sum(self, logits: Any) -> Any:
        """The same, added up."""
        return self.metric(logits).sum()


def open_case(job: dict[str, Any]) -> Case:
    """The model of a job, in float32 and with frozen weights, as its engine takes it, and the pairs."""
    import torch
    from transformers import AutoModelForCausalLM

    # TransformerLens asks for this kernel where it loads a model itself.
    kind = "eager" if job["engine"] == "TransformerLens" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation=kind).eval()
    model.requires_grad_(False)
    pairs = {name: torch.tensor(rows) for name, rows in json.loads(Path(job["pairs"]).read_text()).items()}
    tensors = (pairs[name] for name in ("base", "source", "right", "wrong"))
    return Case(model, WRAPPERS[job["engine"]](model), *tensors, job["layers"], job["positions"])


def ours_model(model: Any) -> Any:
    """Where the sites are."""
    from uphold.models.sites.layout import read_layout

    return read_layout(model)


def ours_sweep(case: Case) -> Parts:
    """Patches by this library."""
    from uphold.models.sites.hooks import Edit
    from uphold.models.sites.resume import keep
    from uphold.models.sites.run import last_positions, read
    from uphold.models.sites.site import Site
    from uphold.models.sites.sweep import mask_at, sweep

    layout, inputs = case.wrapped, {"input_ids": case.base}
    at = last_positions(inputs)

    def prepare() -> Any:
        sites = [Site("head", layer, head) for layer in case.layers for head in range(case.heads)]
        held, _ = read(layout, {"input_ids": case.source}, sites, at=at)
        return held, keep(layout, inputs, at)

    def work(prepared: Any) -> Any:
        held, kept = prepared
        masks = {position: mask_at(tuple(case.base.shape), position) for position in case.positions}
        edits = [
            [Edit(Site("head", layer, head), held[Site("head", layer, head)], masks[position])]
            for layer, position, head in case.candidates()
        ]
        return sweep(layout, kept, edits, case.metric)

    return Parts(prepare, work)


def ours_attribution(case: Case) -> Parts:
    """Attributions by this library."""
    import torch

    from uphold.models.sites.run import last_positions, read
    from uphold.models.sites.screen import attributions

    layout, inputs = case.wrapped, {"input_ids": case.base}
    at, sites = last_positions(inputs), layout.sites("head")

    def work(held: Any) -> Any:
        found = attributions(layout, inputs, held, case.metric, at=at)
        return torch.stack([found[site] for site in sites])

    return Parts(lambda: read(layout, {"input_ids": case.source}, sites, at=at)[0], work)


def ours_das(case: Case, steps: int) -> Parts:
    """Training steps of a direction by this library."""
    import torch

    from uphold.explain.subspaces.config import SubspaceConfig
    from uphold.explain.subspaces.directions import Held, das
    from uphold.explain.subspaces.pairs import Pairs, activations
    from uphold.models.sites.site import Site

    layer, position = case.middle
    layout, site = case.wrapped, Site("residual", layer)
    where = torch.full((len(case.base),), position)
    inputs = {"input_ids": case.base}, {"input_ids": case.source}
    pairs = Pairs(*inputs, answers=case.right, expected=case.wrong, positions=where)
    config = SubspaceConfig(k=1, lr=LR, epochs=steps, batch=len(pairs), seed=SEED)

    def prepare() -> Any:
        return Held(activations(layout, pairs, site), activations(layout, pairs, site, source=True))

    return Parts(prepare, lambda held: das(layout, pairs, site, config, held=held))


def lens_model(model: Any) -> Any:
    """The model in TransformerLens, with the folder's weights as they are."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(model.config.name_or_path, hf_model=model, tokenizer=None, device="cpu")


def lens_sweep(case: Case) -> Parts:
    """Patches by TransformerLens."""
    import pandas
    import torch
    from transformer_lens.patching import get_act_patch_attn_head_out_by_pos

    model = case.wrapped
    names = [f"blocks.{layer}.attn.hook_z" for layer in case.layers]
    rows = pandas.DataFrame(case.candidates(), columns=["layer", "pos", "head"])

    def prepare() -> Any:
        with torch.no_grad():
            return model.run_with_cache(case.source, names_filter=names, logits_to_keep=1)[1]

    def work(cache: Any) -> Any:
        with torch.no_grad():
            return get_act_patch_attn_head_out_by_pos(
                model, case.base, cache, case.metric, index_axis_names=None, index_df=rows, reduce="none"
            ).values

    return Parts(prepare, work)


def lens_attribution(case: Case) -> Parts:
    """Attributions by TransformerLens: its cache of activations and gradients, which takes all pairs at once."""
    import torch
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    model = case.wrapped
    names = [f"blocks.{layer}.attn.hook_z" for layer in case.every_layer]
    # The graph begins at the embeddings; no gradient of their weights is asked for.
    case.model.get_input_embeddings().requires_grad_(True)

    def prepare() -> Any:
        with torch.no_grad():
            return cache_activation_and_gradient(model, case.source, case.metric_sum, names, compute_gradient=False)

    def work(source: Any) -> Any:
        # A hook at the first site fires where the gradient goes on behind it.
        found = cache_activation_and_gradient(model, case.base, case.metric_sum, ["hook_embed", *names])
        each = [
            ((source.activations[name] - found.activations[name]) * found.gradients[name]).sum(-1) for name in names
        ]
        return torch.stack(each).permute(0, 3, 1, 2).flatten(0, 1)

    return Parts(prepare, work)


def lens_das(case: Case, steps: int) -> Parts:
    """Training steps of a direction in TransformerLens."""
    import torch

    layer, position = case.middle
    model, name = case.wrapped, f"blocks.{layer}.hook_resid_post"

    def prepare() -> Any:
        with torch.no_grad():
            both = case.base, case.source
            runs = [model.run_with_cache(ids, names_filter=[name], logits_to_keep=1)[1] for ids in both]
        return [cache[name][:, position] for cache in runs]

    def patched(values: Any) -> Any:
        def put(old: Any, hook: Any) -> Any:
            new = old.clone()
            new[:, position] = values
            return new

        return model.run_with_hooks(case.base, fwd_hooks=[(name, put)], logits_to_keep=1)[:, -1]

    return Parts(prepare, lambda held: trained(case, *held, patched, steps))


def nnsight_model(model: Any) -> Any:
    """The model in nnsight."""
    from nnsight import NNsight

    return NNsight(model)


def nnsight_sweep(case: Case) -> Parts:
    """Patches by nnsight."""
    import torch

    model = case.wrapped
    width = case.model.model.layers[0].self_attn.head_dim

    def prepare() -> Any:
        return nnsight_heads(model, case.source, case.layers)

    def work(held: Any) -> Any:
        found = []
        for layer, position, head in case.candidates():
            part = slice(head * width, (head + 1) * width)
            with torch.no_grad(), model.trace(input_ids=case.base, use_cache=False, logits_to_keep=1):
                model.model.layers[layer].self_attn.o_proj.input[:, position, part] = held[layer][:, position, part]
                logits = model.lm_head.output.save()
            found.append(case.metric(logits))
        return torch.stack(found)

    return Parts(prepare, work)


def nnsight_heads(model: Any, ids: Any, layers: list[int]) -> dict[int, Any]:
    """What goes into the output projections of attention."""
    import nnsight
    import torch

    with torch.no_grad(), model.trace(input_ids=ids, use_cache=False, logits_to_keep=1):
        held = nnsight.save({})
        for layer in layers:
            held[layer] = model.model.layers[layer].self_attn.o_proj.input
    return dict(held)


def nnsight_attribution(case: Case) -> Parts:
    """Attributions by nnsight."""
    import nnsight
    import torch

    model, layers = case.wrapped, list(case.every_layer)

    def work(source: Any) -> Any:
        with model.trace(input_ids=case.base, use_cache=False, logits_to_keep=1):
            held, slopes = nnsight.save({}), nnsight.save({})
            model.model.embed_tokens.output.requires_grad_(True)
            for layer in layers:
                held[layer] = model.model.layers[layer].self_attn.o_proj.input
            value = case.metric_sum(model.lm_head.output)
            with value.backward():
                for layer in reversed(layers):
                    slopes[layer] = held[layer].grad
        each = torch.stack([(source[layer] - held[layer].detach()) * slopes[layer] for layer in layers])
        return each.unflatten(-1, (case.heads, -1)).sum(-1).permute(0, 3, 1, 2).flatten(0, 1)

    return Parts(lambda: nnsight_heads(model, case.source, layers), work)


def nnsight_das(case: Case, steps: int) -> Parts:
    """Training steps of a direction in nnsight."""
    import torch

    layer, position = case.middle
    model = case.wrapped

    def held(ids: Any) -> Any:
        with torch.no_grad(), model.trace(input_ids=ids, use_cache=False, logits_to_keep=1):
            found = model.model.layers[layer].output[:, position].save()
        return found

    def patched(values: Any) -> Any:
        with model.trace(input_ids=case.base, use_cache=False, logits_to_keep=1):
            new = model.model.layers[layer].output.clone()
            new[:, position] = values
            model.model.layers[layer].output = new
            logits = model.lm_head.output.save()
        return logits[:, -1]

    return Parts(lambda: (held(case.base), held(case.source)), lambda both: trained(case, *both, patched, steps))


def trained(case: Case, base: Any, source: Any, patched: Callable[[Any], Any], steps: int) -> Any:
    """The training that `uphold.explain.subspaces.directions.das` does, around the peers' forward passes."""
    import torch
    from torch.nn import functional

    start = torch.randn(base.shape[1], 1, generator=torch.Generator().manual_seed(SEED))
    raw = torch.linalg.qr(start).Q.requires_grad_(True)
    solver = torch.optim.Adam([raw], lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(solver, lambda step: 1 - 0.9 * step / steps)
    for _ in range(steps):
        basis = torch.linalg.qr(raw).Q
        loss = functional.cross_entropy(patched(base + (source - base) @ basis @ basis.T), case.wrong)
        solver.zero_grad()
        loss.backward()
        solver.step()
        schedule.step()
    return raw.detach() / raw.detach().norm()


ENGINES: dict[str, dict[str, Callable[..., Parts]]] = {
    "ours": {"sweep": ours_sweep, "attribution": ours_attribution, "das": ours_das},
    "TransformerLens": {"sweep": lens_sweep, "attribution": lens_attribution, "das": lens_das},
    "nnsight": {"sweep": nnsight_sweep, "attribution": nnsight_attribution, "das": nnsight_das},
}
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "ours": ours_model,
    "TransformerLens": lens_model,
    "nnsight": nnsight_model,
}
