"""Next-token logits at chosen positions, projected to the vocabulary a chunk at a time.

A model is run with its output head looking at one position only; the hidden states of all chosen positions are kept
instead, and whoever needs logits projects as many of them at once as it likes. Where a model does more behind its
head, its config tells of it (a cap) or that one position shows it (a scale), and the logits are made by the model.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

from uphold.models.encode import Batch


class Logits(Protocol):
    """Logits of n positions."""

    def __len__(self) -> int:
        """N."""
        ...

    def chunk(self, part: slice) -> torch.Tensor:
        """Those of some positions, in float32, without gradient; shape (positions, vocabulary)."""
        ...


@runtime_checkable
class Sparing(Protocol):
    """Logits that can be had for single positions, so that none is made for a position that does not count."""

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """Those of some positions, as `Logits.chunk`; `positions` are numbers from 0 to n - 1, shape (m,)."""
        ...


class Projected:
    """Logits made from hidden states by a frozen output head."""

    def __init__(self, hidden: torch.Tensor, head: Any) -> None:
        """Prepare.

        Args:
            hidden: shape (n, width); the gradient of the logits is turned into one of these.
            head: the output projection, an `nn.Linear`.
        """
        self.source, self.head = hidden, head
        self.vocabulary = int(head.weight.shape[0])

    def __len__(self) -> int:
        return len(self.source)

    def chunk(self, part: slice) -> torch.Tensor:
        """See `Logits`."""
        return self.project(self.source[part])

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """See `Sparing`."""
        return self.project(self.source[positions])

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states, in float32, without gradient."""
        with torch.no_grad():
            logits: torch.Tensor = self.head(hidden)
        return logits.float()

    def pull_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """From a gradient of the logits, shape (m, vocabulary), to one of the hidden states, shape (m, width)."""
        weight: torch.Tensor = self.head.weight
        return gradient.to(weight.dtype) @ weight


class Whole:
    """Logits that are there as a whole, shape (n, vocabulary)."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.source = logits
        self.vocabulary = int(logits.shape[-1])

    def __len__(self) -> int:
        return len(self.source)

    def chunk(self, part: slice) -> torch.Tensor:
        """See `Logits`."""
        return self.source[part].detach().float()

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """See `Sparing`."""
        return self.source[positions].detach().float()

    def pull_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient itself."""
        return gradient


class Reader:
    """Reads batches with one model; what it finds out about the model's head is kept."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._head = _linear_head(model)

    def logits(self, batch: Batch, sequence: torch.Tensor, position: torch.Tensor) -> Projected | Whole:
        """The model's logits at (sequence, position) pairs, with gradient where gradients are on.

        Args:
            batch: what is read.
            sequence: rows of the batch, shape (n,).
            position: places in these rows, shape (n,); the logits are for the token that follows.
        """
        # A head that is trained needs its own gradient; that a teacher's could be trained does not matter.
        trained = self._head is not None and self._head.weight.requires_grad and torch.is_grad_enabled()
        if self._head is not None and not trained and len(sequence):
            hidden, sample = self._narrowed(batch, sequence, position)
            with torch.no_grad():
                plain = self._head(hidden[:1])
            if torch.allclose(plain, sample, rtol=1e-3, atol=1e-3):
                return Projected(hidden, self._head)
            self._head = None
        return Whole(self._run(batch)[sequence, position])

    def _narrowed(
        self, batch: Batch, sequence: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states at all pairs, and the model's logits at the first one, without gradient."""
        found: list[torch.Tensor] = []

        def narrow(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            found.append(inputs[0][sequence, position])
            return found[0][:1].detach().unsqueeze(0), *inputs[1:]

        handle = self._head.register_forward_pre_hook(narrow)
        try:
            sample = self._run(batch)[0]
        finally:
            handle.remove()
        return found[0], sample.detach()

    def _run(self, batch: Batch) -> torch.Tensor:
        output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return output.logits  # type: ignore[no-any-return]


def _linear_head(model: Any) -> Any:
    """The model's output head if it is a plain linear layer with nothing behind it that the config tells of; else None.

    A cap on the logits has to be read from the config: where the sampled position has small ones, it does not show.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None) if head is not None else None
    return head if not capped and type(head) is torch.nn.Linear and head.bias is None else None
