"""Log-likelihood of answer options: every distinct token is read once.

Where the model takes masks (`attention.reads_masks`), a question is one row that holds its context and, side by side,
its options; questions with a common prefix go on from a cached header. Elsewhere each distinct row is read plainly,
padded on the right, where no real token sees the padding. Either way rows of like length share a forward pass under a
budget of tokens, and only the positions asked for are projected to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.errors import ModelError
from uphold.models.attention import attention_window, mask_for, max_length, predictions, read_header, reads_masks
from uphold.models.encode import Encoder
from uphold.models.token_tree import Group, Request, TokenTree, batches, grow, rounded, share_headers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from uphold.models.engine import Meter

LOGITS = 1 << 26
"""The most logits (positions times vocabulary) in a forward pass."""
CHUNK = 1 << 24
"""The most logits that are normalised at once."""
ALIGNMENT = 8
"""Sizes are padded to a multiple of this: CPU kernels then do the same sums for a row whatever stands beside it."""


class OptionScore(NamedTuple):
    """What a model makes of one continuation."""

    logprob: float
    """Summed log-likelihood in nats."""
    tokens: int
    """How many tokens the continuation has."""
    greedy: bool
    """Whether each of its tokens is the likeliest one."""


class Scored(NamedTuple):
    """The options of one question."""

    options: tuple[OptionScore, ...]
    """In the order of the question's requests."""
    tokens: int
    """Distinct tokens read for them."""
    truncated: bool
    """Whether a context was cut from the left to fit the model."""


class LikelihoodEngine:
    """Scores continuations with one model; what it finds out about the model is kept."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder, batch_tokens: int, meter: Meter) -> None:
        """Prepare to score.

        Args:
            model: a causal language model in eval mode.
            encoder: of the model's tokenizer.
            batch_tokens: padded tokens per forward pass, at most; a single longer row still gets one.
            meter: counts tokens.
        """
        self.model, self.encoder, self.batch_tokens, self.meter = model, encoder, batch_tokens, meter
        self._reads_masks: bool | None = None

    def score(self, questions: Sequence[Sequence[tuple[str, str]]]) -> list[Scored]:
        """Score the (context, continuation) pairs of each question.

        Raises:
            ModelError: a continuation has no tokens of its own.
        """
        if not questions:
            return []
        encoded, truncated = encode_questions(self.encoder, questions, max_length(self.model))
        # What is read as one row or tree, and which requests (flat numbers) each of its own requests answers.
        groups: dict[bool, dict[Sequence[Any], dict[Request, list[int]]]] = {True: {}, False: {}}
        keys: list[Sequence[Any]] = []
        for question in encoded:
            shared = self._may_share(question)
            for request in question:
                key = tuple(question) if shared else request.row
                groups[shared].setdefault(key, {}).setdefault(request, []).append(len(keys))
                keys.append(key)
        trees: dict[Sequence[Any], TokenTree] = {}
        found: dict[int, OptionScore] = {}
        for shared, group in groups.items():
            grown = [grow(list(requests)) for requests in group.values()]
            trees |= zip(group, grown, strict=True)
            for requests, scores in zip(group.values(), self._read(grown, shared), strict=True):
                for (request, slots), (logprob, greedy) in zip(requests.items(), scores, strict=True):
                    found |= dict.fromkeys(slots, OptionScore(logprob, len(request.continuation), greedy))
        results, start = [], 0
        for question, cut in zip(encoded, truncated, strict=True):
            own = range(start, start + len(question))
            tokens = sum(len(trees[key]) for key in {keys[slot] for slot in own})
            results.append(Scored(tuple(found[slot] for slot in own), tokens, cut))
            start += len(question)
        return results

    def _may_share(self, question: Sequence[Request]) -> bool:
        """Whether a question may be read as a tree: the model takes masks, and no attention window cuts a row short."""
        if self._reads_masks is None:
            self._reads_masks = reads_masks(self.model)
        window = attention_window(self.model)
        return self._reads_masks and (window is None or max(len(request.row) for request in question) <= window)

    def _read(self, trees: Sequence[TokenTree], shared: bool) -> list[list[tuple[float, bool]]]:
        """For each tree the (log-likelihood, greedy) of its requests."""
        results: list[list[tuple[float, bool]]] = [[] for _ in trees]
        most = max(1, LOGITS // int(self.model.config.get_text_config().vocab_size))
        for header, members in share_headers(trees) if shared else [Group((), tuple(range(len(trees))))]:
            cache = None
            if header:
                cache = read_header(self.model, header)
                self.meter.add(len(header))
            for batch in batches(trees, members, len(header), ALIGNMENT, self.batch_tokens, most):
                read = self._forward([trees[index] for index in batch], len(header), cache)
                for index, scores in zip(batch, read, strict=True):
                    results[index] = scores
        return results

    def _forward(self, trees: Sequence[TokenTree], skip: int, header: Cache | None) -> list[list[tuple[float, bool]]]:
        """Read one batch, whose first `skip` tokens are in `header`."""
        import torch

        masked = header is not None or not all(tree.is_chain for tree in trees)
        length = rounded(max(len(tree) for tree in trees) - skip, ALIGNMENT)
        if not masked:
            # Without positions of ours, padding must not stand behind the model's last one.
            length = min(length, max_length(self.model) or length)
        input_ids = torch.zeros(len(trees), length, dtype=torch.long)
        positions = torch.zeros_like(input_ids)
        for row, tree in enumerate(trees):
            input_ids[row, : len(tree) - skip] = torch.tensor(tree.tokens[skip:])
            positions[row, : len(tree) - skip] = torch.tensor(tree.depths[skip:])
        arguments: dict[str, Any] = {"input_ids": input_ids.to(self.model.device), "use_cache": False}
        if masked:
            arguments["attention_mask"] = mask_for(self.model, _visible(trees, skip, length))
            arguments["position_ids"] = positions.to(self.model.device)
        if header is not None:
            arguments |= {"past_key_values": header, "use_cache": True}
        picks = [
            (row, node - skip, token, request)
            for row, tree in enumerate(trees)
            for request, targets in enumerate(tree.targets)
            for node, token in targets
        ]
        rows, nodes, tokens, _ = (torch.tensor(column) for column in zip(*picks, strict=True))
        cells, cell = torch.unique(rows * length + nodes, return_inverse=True)
        cells = torch.cat([cells, cells[-1:].expand(rounded(len(cells), ALIGNMENT) - len(cells))])
        logits = predictions(self.model, arguments, cells // length, cells % length)
        logprobs, greedy = _picked(logits, cell, tokens)
        self.meter.add(length * len(trees))
        sums = [[(0.0, True)] * len(tree.targets) for tree in trees]
        for (row, _, _, request), logprob, best in zip(picks, logprobs, greedy, strict=True):
            before, all_best = sums[row][request]
            sums[row][request] = (before + logprob, all_best and best)
        return sums


def encode_questions(
    encoder: Encoder, questions: Sequence[Sequence[tuple[str, str]]], longest: int | None
) -> tuple[list[list[Request]], list[bool]]:
    """Requests as tokens, cut from the left to `longest` tokens, and for each question whether one was cut.

    Raises:
        ModelError: a continuation alone is longer.
    """
    pairs = encoder.pairs([pair for question in questions for pair in question])
    encoded, truncated, start = [], [], 0
    for question in questions:
        requests, cut = [], False
        for context, continuation, _ in pairs[start : start + len(question)]:
            if longest is not None and len(continuation) > longest:
                raise ModelError(
                    f"a continuation has {len(continuation)} tokens, but the model reads {longest} at most: "
                    "use a model with a longer context"
                )
            surplus = 0 if longest is None else min(len(context) + len(continuation) - longest - 1, len(context) - 1)
            cut = cut or surplus > 0
            requests.append(Request(tuple(context[max(0, surplus) :]), tuple(continuation)))
        encoded.append(requests)
        truncated.append(cut)
        start += len(question)
    return encoded, truncated


def planned_tokens(encoder: Encoder, questions: Sequence[Sequence[tuple[str, str]]]) -> tuple[int, int]:
    """Tokens that reading `questions` would take without padding: each distinct prefix once, and each request alone."""
    encoded, _ = encode_questions(encoder, questions, None)
    trees = [grow(question) for question in dict.fromkeys(map(tuple, encoded))]
    shared = sum(
        len(header) + sum(len(trees[index]) - len(header) for index in members)
        for header, members in share_headers(trees)
    )
    return shared, sum(len(request.row) for question in encoded for request in question)


def _visible(trees: Sequence[TokenTree], skip: int, length: int) -> torch.Tensor:
    """The mask (rows, length, skip + length) of a batch; padding sees itself only, so that nothing is NaN."""
    import torch

    seen = torch.zeros(len(trees), length, skip + length, dtype=torch.bool)
    seen[:, :, skip:] = torch.eye(length, dtype=torch.bool)
    for row, tree in enumerate(trees):
        size = len(tree) - skip
        seen[row, :size, :skip] = True
        seen[row, :size, skip : skip + size] = torch.from_numpy(tree.visible(skip))
    return seen


def _picked(logits: torch.Tensor, cell: torch.Tensor, tokens: torch.Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability of `tokens` at the rows `cell` of `logits`, and whether each is the likeliest there."""
    import torch

    step = max(1, CHUNK // logits.shape[1])
    normaliser, best = [], []
    for start in range(0, len(logits), step):
        chunk = logits[start : start + step].float()
        normaliser.append(chunk.logsumexp(dim=-1))
        best.append(chunk.argmax(dim=-1))
    at, wanted = cell.to(logits.device), tokens.to(logits.device)
    logprobs = logits[at, wanted].double() - torch.cat(normaliser)[at].double()
    return logprobs.tolist(), (torch.cat(best)[at] == wanted).tolist()
