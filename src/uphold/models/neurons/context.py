"""Forward passes at one position: as the model is, with other neurons tried in its place, and with gradients.

Trying a neuron does not touch the weights: column j of a down-projection enters its output as activation times column,
so that a changed column adds activation_j (w_new - w_old) there, at every position. Each row of a batch can thus have a
neuron of its own, which is exact up to the order of additions. What lies below the first layer looked at is the same
for all rows and all edits; it is read once and replayed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from uphold.core.errors import ModelError, UsageError
from uphold.models.neurons.neurons import Anatomy, Down

BATCH_TOKENS = 2048
"""Most tokens that neurons are tried on at once."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A neuron as it might become."""

    down: Down
    index: int
    column: torch.Tensor
    """Shape (d,), in the weight's dtype."""
    delta: torch.Tensor
    """What was added to the neuron as it was before any edit, in float32."""


def forward(anatomy: Anatomy, ids: torch.Tensor, last_only: bool = False) -> torch.Tensor:
    """Logits of rows of token ids, shape (rows, length or 1, vocabulary), in float32; unknown tokens are cut off.

    Raises:
        UsageError: a row is longer than the model can read.
        ModelError: the logits are not numbers.
    """
    config = getattr(anatomy.model, "config", None)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if longest is not None and ids.shape[1] > longest:
        raise UsageError(f"a sequence has {ids.shape[1]} tokens, but the model reads at most {longest}: shorten it")
    given: dict[str, Any] = {"use_cache": False}
    if last_only:
        given["logits_to_keep"] = 1
    accepted = inspect.signature(anatomy.model.forward).parameters
    output = anatomy.model(ids.to(anatomy.device), **{key: value for key, value in given.items() if key in accepted})
    logits = output if isinstance(output, torch.Tensor) else output.logits
    logits = (logits[:, -1:] if last_only else logits)[..., : anatomy.vocabulary].float()
    if not bool(logits.isfinite().all()):
        raise ModelError("the model gives logits that are not numbers: its weights or its dtype are broken")
    return logits


class Context:
    """A model behind one sequence of token ids, asked for the next token.

    Only neurons of the layers it was made for may be edited while it is in use.
    """

    def __init__(self, anatomy: Anatomy, ids: Sequence[int], downs: Sequence[Down]) -> None:
        """Read the lower layers once.

        Args:
            anatomy: of the model, in eval mode.
            ids: the sequence.
            downs: where neurons are looked at, tried and edited.
        """
        self.anatomy, self.ids, self.downs = anatomy, torch.tensor([list(ids)]), tuple(downs)
        self._lower: list[tuple[Any, Any]] = []
        self._lower = self._read_lower()

    def logits(self) -> torch.Tensor:
        """Those of the next token, shape (vocabulary,)."""
        return self.simulate([])[0]

    @torch.no_grad()
    def simulate(self, trials: Sequence[Trial]) -> torch.Tensor:
        """Next-token logits with each trial on its own, shape (trials, vocabulary); of the model as it is for none."""
        size = max(1, BATCH_TOKENS // self.ids.shape[1])
        parts = [trials[start : start + size] for start in range(0, len(trials), size)] or [()]
        return torch.cat([self._simulated(part) for part in parts])

    def gradients(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Activations and what `loss` changes by them, both of shape (length, m), for each of `downs`.

        Args:
            loss: from next-token logits, shape (vocabulary,), to a number.
        """
        seen: dict[str, torch.Tensor] = {}

        def hook(down: Down) -> Callable[..., tuple[Any, ...]]:
            def keep(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
                given = inputs[0]
                # The first of frozen weights: below it nothing needs a gradient.
                seen[down.name] = given if given.requires_grad else given.detach().requires_grad_(True)
                return (seen[down.name], *inputs[1:])

            return keep

        handles = [down.module.register_forward_pre_hook(hook(down)) for down in self.downs]
        try:
            with torch.enable_grad():
                value = loss(self._forward(1)[0])
                made = torch.autograd.grad(value, [seen[down.name] for down in self.downs])
        finally:
            for handle in handles:
                handle.remove()
        pairs = zip(self.downs, made, strict=True)
        return [
            (seen[down.name].detach().reshape(-1, down.width), gradient.reshape(-1, down.width))
            for down, gradient in pairs
        ]

    def _simulated(self, trials: Sequence[Trial]) -> torch.Tensor:
        rows = max(1, len(trials))
        handles = []
        for down in dict.fromkeys(trial.down for trial in trials):
            mine = [(row, trial) for row, trial in enumerate(trials) if trial.down is down]
            handles.append(down.module.register_forward_hook(_adding(rows, mine)))
        try:
            return self._forward(rows)
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, rows: int) -> torch.Tensor:
        with _replayed(self._lower, rows):
            return forward(self.anatomy, self.ids.expand(rows, -1), last_only=True)[:, 0]

    @torch.no_grad()
    def _read_lower(self) -> list[tuple[Any, Any]]:
        """The blocks below the first of `downs` with their outputs; nothing where these cannot be told."""
        block = self.downs[0].block if self.downs else None
        if block is None or block[1] == 0:
            return []
        blocks = [self.anatomy.model.get_submodule(f"{block[0]}.{number}".lstrip(".")) for number in range(block[1])]
        outputs: dict[int, Any] = {}

        def hook(number: int) -> Callable[..., None]:
            return lambda module, inputs, output: outputs.__setitem__(number, output)

        handles = [one.register_forward_hook(hook(number)) for number, one in enumerate(blocks)]
        try:
            self._forward(1)
        finally:
            for handle in handles:
                handle.remove()
        if len(outputs) < len(blocks) or any(_hidden(output) is None for output in outputs.values()):
            return []
        return [(one, outputs[number]) for number, one in enumerate(blocks)]


def _hidden(output: Any) -> torch.Tensor | None:
    """The hidden states (1, length, d) in what a block returns; None where it returns something else."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, torch.Tensor) and first.dim() == 3 and len(first) == 1 else None


@contextmanager
def _replayed(lower: Sequence[tuple[Any, Any]], rows: int) -> Iterator[None]:
    """Let blocks return what they returned before, once for each of `rows` rows."""

    def replay(output: Any) -> Callable[..., Any]:
        hidden = _hidden(output)
        assert hidden is not None
        spread = hidden.expand(rows, -1, -1)
        again = (spread, *output[1:]) if isinstance(output, tuple) else spread
        return lambda *_, **__: again

    kept = [(block, block.__dict__.get("forward")) for block, _ in lower]
    try:
        for block, output in lower:
            block.forward = replay(output)
        yield
    finally:
        for block, before in kept:
            if before is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = before


def _adding(rows: int, trials: Sequence[tuple[int, Trial]]) -> Callable[..., torch.Tensor]:
    """A hook that adds to a down-projection's output what each row's trial changes in it."""

    def add(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        chosen = torch.tensor([row for row, _ in trials], device=output.device)
        indices = torch.tensor([trial.index for _, trial in trials], device=output.device)
        changes = torch.stack([trial.column.float() - trial.down.neuron(trial.index).float() for _, trial in trials])
        activation = inputs[0].reshape(rows, -1, inputs[0].shape[-1])[chosen].float()
        activation = activation.gather(2, indices[:, None, None].expand(-1, activation.shape[1], 1))
        made = output.reshape(rows, -1, output.shape[-1]).clone()
        made[chosen] = (made[chosen].float() + activation * changes[:, None]).to(output.dtype)
        return made.reshape(output.shape)

    return add
