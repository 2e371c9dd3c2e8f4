"""Causal graphs of a classifier's classes: which units are causes of a logit (arXiv:2305.08950)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uphold.core.progress import Progress, silent
from uphold.core.registry import explain
from uphold.explain.graphs.config import PAPER
from uphold.explain.graphs.config import GraphConfig as GraphConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from uphold.explain.graphs.diff import GraphDiff
    from uphold.explain.graphs.graph import ClassGraph


@explain("causal-graph", paper=PAPER)
def causal_graph(
    model: nn.Module,
    images: torch.Tensor,
    label: int,
    *,
    new: nn.Module | None = None,
    ids: Sequence[str] | None = None,
    draws: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
    config: GraphConfig | None = None,
    progress: Progress = silent,
) -> ClassGraph | GraphDiff:
    """Find the units and edges that cause the logit of a class, in one model or in two versions.

    Args:
        model: a feed-forward classifier whose linear and convolutional layers run one after the other.
        images: of the class, shape (n, ...).
        label: the class.
        new: a later version of the model; then the two are compared on the images that `model` gets right.
        ids: names of the images; hashes of their contents where None.
        draws: bootstrap samples for the stability of edges, of one model.
        seed: of the bootstrap samples.
        out: a folder to write `graph.json`, `graph.svg` and `graph.dot` to.
        config: the options.
        progress: called after every pass.

    Raises:
        UpholdError: see `uphold.explain.graphs.build.class_graph` and `uphold.explain.graphs.diff.diff`.
    """
    from uphold.core.errors import UsageError
    from uphold.core.storage import writable_folder, write_text
    from uphold.explain.graphs.build import class_graph
    from uphold.explain.graphs.diff import diff
    from uphold.explain.graphs.draw import dot, svg
    from uphold.explain.graphs.stability import stable_graph

    if new is not None and draws:
        raise UsageError("bootstrap draws are of one model: leave out `new` or `draws`")
    folder = None if out is None else writable_folder(Path(out))
    found: ClassGraph | GraphDiff
    if new is not None:
        found = diff(model, new, images, label, ids=ids, config=config, progress=progress)
    elif draws:
        found = stable_graph(model, images, label, ids=ids, config=config, draws=draws, seed=seed, progress=progress)
    else:
        found = class_graph(model, images, label, ids=ids, config=config, progress=progress)
    if folder is not None:
        found.write(folder / "graph.json")
        write_text(folder / "graph.svg", svg(found))
        write_text(folder / "graph.dot", dot(found))
    return found
