"""One forward pass, with sites read and overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from uphold.models.sites.hooks import Edit, Inputs, reading, writing
from uphold.models.sites.layout import Layout
from uphold.models.sites.site import Site


def run(
    layout: Layout, inputs: Inputs, edits: Sequence[Edit] = (), *, at: torch.Tensor | None = None, grad: bool = False
) -> torch.Tensor:
    """The model's output with `edits` in place.

    Args:
        layout: of the model, which is put into evaluation mode for the pass.
        inputs: what the model is called with.
        edits: what to overwrite, in this order where they meet.
        at: the position that counts in each row, shape (rows,), int64; for decoders only the logits there are computed.
        grad: whether to keep the graph.

    Returns:
        Logits of shape (rows, positions, V), (rows, V) with `at`, or what a plain module returns.

    Raises:
        ModelError: an edit does not fit its site, or did not take place.
    """
    with ready(layout.model, grad), writing(layout, edits):
        return logits_of(layout.model, inputs, at)


def read(
    layout: Layout,
    inputs: Inputs,
    sites: Sequence[Site],
    edits: Sequence[Edit] = (),
    *,
    at: torch.Tensor | None = None,
    grad: bool = False,
) -> tuple[dict[Site, torch.Tensor], torch.Tensor]:
    """What sites hold after the edits, each of shape (rows, positions, width), and the output as `run` gives it."""
    with ready(layout.model, grad), writing(layout, edits), reading(layout, sites) as found:
        logits = logits_of(layout.model, inputs, at)
    return found, logits


def last_positions(inputs: Mapping[str, Any]) -> torch.Tensor:
    """The last position of each row that is no padding, shape (rows,); rows are padded on the right."""
    mask = inputs.get("attention_mask")
    ids = inputs["input_ids"]
    if mask is None:
        return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    last: torch.Tensor = mask.long().cumsum(1).argmax(1)
    return last


def rows_of(inputs: Inputs, rows: torch.Tensor | slice) -> Inputs:
    """The same for some rows."""
    if isinstance(inputs, torch.Tensor):
        return inputs[rows]
    return {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


@contextmanager
def ready(model: torch.nn.Module, grad: bool = False) -> Iterator[None]:
    """Evaluation mode, and gradients or none, for a while."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.enable_grad() if grad else torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No gradients for the model's weights for a while, so that only what is asked for gets one."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def logits_of(model: Any, inputs: Inputs, at: torch.Tensor | None) -> torch.Tensor:
    """What the model returns, at `at` where that is given."""
    if isinstance(inputs, torch.Tensor):
        output = model(inputs)
    else:
        with _narrowed(model, at) as narrow:
            known = {"use_cache": False} if hasattr(model, "generate") else {}
            output = model(**{**known, **inputs})
        if narrow:
            return getattr(output, "logits", output)[:, 0]  # type: ignore[no-any-return]
    logits: torch.Tensor = getattr(output, "logits", output)
    return logits if at is None else logits[torch.arange(len(logits), device=logits.device), at.to(logits.device)]


@contextmanager
def _narrowed(model: Any, at: torch.Tensor | None) -> Iterator[list[bool]]:
    """Let the output projection see only the position that counts; the list is not empty once it has done so."""
    head = model.get_output_embeddings() if at is not None and hasattr(model, "get_output_embeddings") else None
    done: list[bool] = []

    def narrow(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        assert at is not None
        done.append(True)
        hidden = inputs[0]
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, at.to(hidden.device)].unsqueeze(1), *inputs[1:]

    with nullcontext() if head is None else _hook(head, narrow):
        yield done


@contextmanager
def _hook(module: Any, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
