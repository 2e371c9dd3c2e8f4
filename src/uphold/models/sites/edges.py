"""Edges: what one part of a decoder writes to the residual stream, on its way into one other part that reads it.

    effect of an edge u -> v  =  m(v reads r_v + (a'_u - a_u), all else computes anew)  -  m
                              ~  (a'_u - a_u) . dm/dr_v

where a_u is what u adds to the stream, a'_u what it adds in another run, and r_v what v reads. The estimate of all
edges takes one forward and one backward pass: Syed et al., arXiv:2310.10348; with gradients averaged over steps between
the two inputs: Hanna et al., arXiv:2403.17806. `patched_edges` gives the exact effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from uphold.core.errors import ModelError, UsageError
from uphold.core.progress import Progress, silent
from uphold.models.sites.hooks import Edit, Inputs
from uphold.models.sites.layout import Layout
from uphold.models.sites.resume import Kept
from uphold.models.sites.run import read, ready, rows_of
from uphold.models.sites.screen import mean_gradients
from uphold.models.sites.site import Kind, Site
from uphold.models.sites.sweep import TOKENS, Metric, sweep
from uphold.models.sites.weights import matrix_of

ENTRY = Site("residual", -1)
_BEFORE_ATTENTION = ("input_layernorm", "ln_1", "self_attn_layer_norm", "ln_attn")
_BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "final_layer_norm", "ln_mlp")
_LAST = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_AFTER: dict[Kind, str] = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
"""Norms of what a part writes, in models that also have one named `pre_feedforward_layernorm` (Gemma 2 and 3)."""
_SAME = 1e-3
"""Relative to what was added."""


class Edge(NamedTuple):
    """A sender and a receiver."""

    sender: Site
    """A head, an attention or feed-forward part, or residual.-1: what the embeddings write."""
    receiver: Site | None
    """An attention or feed-forward part; None is what reads the last residual stream to give the logits."""

    def __str__(self) -> str:
        return f"{self.sender} -> {self.receiver or 'logits'}"


@dataclass(frozen=True)
class Stream:
    """Where the parts of a decoder read the residual stream, and which are behind which."""

    layout: Layout
    parallel: bool
    """Whether the feed-forward part of a block does not read what its attention writes."""

    def receivers(self) -> list[Site | None]:
        """All parts that read, in the order of the pass."""
        return [*self.layout.sites("attention", "mlp"), None]

    def edges(self, senders: Sequence[Site]) -> list[Edge]:
        """All edges from these senders."""
        return [Edge(one, other) for one in senders for other in self.receivers() if self.is_behind(one, other)]

    def is_behind(self, sender: Site, receiver: Site | None) -> bool:
        """Whether what the sender writes is part of what the receiver reads."""
        if receiver is None or sender.layer < receiver.layer:
            return True
        same = sender.layer == receiver.layer
        return same and sender.kind in ("head", "attention") and receiver.kind == "mlp" and not self.parallel

    def reading(self, receiver: Site | None) -> Site:
        """The site that holds what a receiver reads: the input of the norm before it."""
        path, layer = self.layout.block_path, self.layout.layers
        if receiver is None:
            parent = path.rpartition(".")[0]
            return self._norm(receiver, layer, parent, _LAST)
        names = _BEFORE_ATTENTION if receiver.kind == "attention" else _BEFORE_MLP
        return self._norm(receiver, receiver.layer, f"{path}.{receiver.layer}", names)

    def _norm(self, receiver: Site | None, layer: int, parent: str, names: Sequence[str]) -> Site:
        inside = dict(self.layout.model.get_submodule(parent).named_children())
        found = next((name for name in names if name in inside), None)
        if found is None:
            raise ModelError(
                f"no norm of a name known here stands before {receiver or 'the logits'} "
                f"(in {parent or 'the model'}: {', '.join(inside)}): edges cannot be told apart"
            )
        return Site("module-input", layer, path=f"{parent}.{found}" if parent else found)

    def writing(self, sender: Site) -> Site:
        """The site that holds what a sender adds to the stream, or, of a head, what its output projection takes."""
        if sender.kind in _AFTER:
            block = f"{self.layout.block_path}.{sender.layer}"
            inside = dict(self.layout.model.get_submodule(block).named_children())
            if "pre_feedforward_layernorm" in inside and _AFTER[sender.kind] in inside:
                return Site("module", sender.layer, path=f"{block}.{_AFTER[sender.kind]}")
        return sender

    def written(self, sender: Site, change: torch.Tensor) -> torch.Tensor:
        """What a change of `writing(sender)`, shape (..., width), changes in the stream, shape (..., hidden)."""
        if sender.kind != "head":
            return change
        place = self.layout.place(sender)
        return change @ matrix_of(self.layout, place.path, place.module)[place.start : place.stop].to(change)


def read_stream(layout: Layout, inputs: Inputs) -> Stream:
    """Find where parts read, and make sure on the first of some inputs that what they write is added to the stream.

    Raises:
        ModelError: a norm is not found, or something else is done with what a part writes.
    """
    if not layout.layers:
        raise ModelError(f"{type(layout.model).__name__} has no list of blocks: edges are those of decoders")
    one = rows_of(inputs, slice(0, 1))
    stream = Stream(layout, parallel=False)
    attention, mlp = stream.writing(Site("attention", 0)), stream.writing(Site("mlp", 0))
    after, end = stream.reading(Site("mlp", 0)), Site("residual", 0)
    plain, _ = read(layout, one, [after, end, attention, mlp])
    generator = torch.Generator().manual_seed(0)
    arrived = []
    for sender, receiver in ((attention, after), (mlp, end)):
        noise = torch.randn(plain[sender].shape, generator=generator)
        added = 0.1 * plain[sender].abs().max() * noise.to(plain[sender])
        found, _ = read(layout, one, [receiver], [Edit(sender, plain[sender] + added)])
        arrived.append(_arrives(found[receiver] - plain[receiver], added))
    if arrived[0] is None or not arrived[1]:
        raise ModelError(
            f"{type(layout.model).__name__} does not add what its parts write to the residual stream as it is: edges "
            "cannot be told apart there"
        )
    return Stream(layout, parallel=not arrived[0])


def _arrives(change: torch.Tensor, added: torch.Tensor) -> bool | None:
    """Whether all that was added arrives (True) or none of it (False); None for anything else."""
    limit = _SAME * float(added.abs().max())
    if float((change - added).abs().max()) <= limit:
        return True
    return False if float(change.abs().max()) <= limit else None


def edge_attributions(
    stream: Stream,
    inputs: Inputs,
    source: Mapping[Site, torch.Tensor],
    metric: Callable[[torch.Tensor], torch.Tensor],
    *,
    at: torch.Tensor | None = None,
    where: torch.Tensor | None = None,
    steps: int = 1,
) -> dict[Edge, torch.Tensor]:
    """What patching each edge would do to the metric, to first order.

    Args:
        stream: of the model.
        inputs: the run that is to be patched.
        source: by sender, what `Stream.writing` of it holds in the other run, shape (rows, positions, width).
        metric: logits to one number for each row.
        at: the position that counts in each row.
        where: bool, shape (rows, positions): the positions that are patched; all where None.
        steps: above 1, gradients are averaged over so many points on the way of the embeddings to those of the source,
            which then has to hold the site residual.-1 as well.

    Returns:
        By edge, shape (rows,).
    """
    changes = _changes(stream, inputs, source, where)
    receivers = stream.receivers()
    reads = [stream.reading(receiver) for receiver in receivers]
    _, slopes = mean_gradients(stream.layout, inputs, reads, metric, source.get(ENTRY), at=at, steps=steps)
    found = {}
    for receiver, site in zip(receivers, reads, strict=True):
        before = [sender for sender in source if stream.is_behind(sender, receiver)]
        for sender in before:
            found[Edge(sender, receiver)] = (changes[sender] * slopes[site]).sum((1, 2))
    return found


def patched_edges(
    stream: Stream,
    kept: Kept,
    source: Mapping[Site, torch.Tensor],
    edges: Sequence[Edge],
    metric: Metric,
    *,
    where: torch.Tensor | None = None,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> torch.Tensor:
    """What the metric becomes when each edge, by itself, carries what its sender writes in another run.

    Args:
        stream: of the model.
        kept: the run that is patched.
        source: as in `edge_attributions`.
        edges: which.
        metric: what is measured.
        where: the positions that are patched; all where None.
        tokens: positions in one forward pass, over all rows and edges.
        progress: called after every pass.

    Returns:
        Shape (edges, rows), float32.

    Raises:
        UsageError: a receiver does not read what its sender writes.
    """
    for edge in edges:
        if not stream.is_behind(*edge):
            raise UsageError(f"edge {edge}: {edge.receiver} does not read what {edge.sender} writes")
    changes = _changes(stream, kept.inputs, {edge.sender: source[edge.sender] for edge in edges}, where)
    reads = {edge.receiver: stream.reading(edge.receiver) for edge in edges}
    clean, _ = read(stream.layout, kept.inputs, list(dict.fromkeys(reads.values())), at=kept.at)
    candidates = [[Edit(site := reads[edge.receiver], clean[site] + changes[edge.sender])] for edge in edges]
    return sweep(stream.layout, kept, candidates, metric, tokens=tokens, progress=progress)


def _changes(
    stream: Stream, inputs: Inputs, source: Mapping[Site, torch.Tensor], where: torch.Tensor | None
) -> dict[Site, torch.Tensor]:
    """By sender, what patching it changes in the stream, shape (rows, positions, hidden)."""
    writes = {sender: stream.writing(sender) for sender in source}
    own, _ = read(stream.layout, inputs, list(dict.fromkeys(writes.values())))
    found = {}
    with ready(stream.layout.model):
        for sender, site in writes.items():
            change = stream.written(sender, source[sender].to(own[site]) - own[site])
            found[sender] = change if where is None else change.masked_fill(~where.to(change.device)[..., None], 0)
    return found
