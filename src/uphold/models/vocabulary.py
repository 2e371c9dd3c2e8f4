"""One vocabulary for several models: whose rows of the embeddings mean which token.

Tokens are identified by their text. A union is the base's tokenizer with the tokens of the others added behind its own
in the order of their ids; as added tokens they are found in a text before the base's own rules cut it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from uphold.core.errors import ModelError, UsageError, unknown_name
from uphold.models.load import load_tokenizer
from uphold.models.reference import ModelFiles, find_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNION, BASE = "union", "base"


@dataclass(frozen=True)
class Member:
    """A model that takes part."""

    files: ModelFiles
    rows: int
    """Rows of its embeddings; token ids beyond them do not exist for it."""


@dataclass(frozen=True)
class Wish:
    """Where the embedding of one token is to come from, where a model lacks it."""

    model: str | None = None
    """A member; None with `zero` unset leaves it to the rules."""
    token: str | int | None = None
    """Which of that model's tokens, by text or id; None for the one of the same text."""
    zero: bool = False
    """Zeros."""
    force: bool = False
    """Also in models that have the token."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and for every model which of its rows are the embeddings of its tokens."""

    tokenizer: PreTrainedTokenizerBase
    padding: int
    """Rows behind those of the tokens."""
    own: Mapping[str, torch.Tensor]
    """By model: its row of every token, -1 where it has none or a wish replaces it. Shape: (tokens,), int64."""
    base: str
    _all: Mapping[str, torch.Tensor]
    _wished: Mapping[int, tuple[str, int] | None]

    @property
    def tokens(self) -> int:
        """Rows that stand for token ids."""
        return len(next(iter(self.own.values())))

    @property
    def size(self) -> int:
        """Rows of the embeddings, padding included."""
        return self.tokens + self.padding

    def others(self, models: Sequence[str]) -> dict[str, torch.Tensor]:
        """Where a model of `models` that lacks a token takes it from: the mean of these rows, -1 for none.

        The base's row where it has the token, else those of all models that have it; a wish goes before.
        """
        found = {name: self._all[name].clone() for name in models}
        if self.base in found:
            known = found[self.base] >= 0
            for name, rows in found.items():
                if name != self.base:
                    rows[known] = -1
        for token, place in self._wished.items():
            for rows in found.values():
                rows[token] = -1
            if place is not None:
                found.setdefault(place[0], torch.full((self.tokens,), -1))[token] = place[1]
        return found

    def orphans(self) -> list[str]:
        """Tokens that no model has and no wish speaks of: their rows are zeros."""
        everywhere = torch.stack(list(self._all.values())).amax(dim=0)
        return [
            token
            for token, number in sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
            if everywhere[number] < 0 and number not in self._wished
        ]


def build_vocabulary(
    members: Mapping[str, Member],
    base: str,
    source: str = UNION,
    wishes: Mapping[str, Wish] | None = None,
    multiple: int | None = None,
) -> Vocabulary:
    """One vocabulary for all members.

    Args:
        members: the models by name, in order.
        base: whose tokenizer a union starts from, and whose rows stand in first.
        source: `union`, `base`, or a model.
        wishes: by token; tokens that the tokenizer lacks are added to it.
        multiple: rows are padded to a multiple of this.

    Raises:
        ModelError: a model has no tokenizer, or a token is wished for from a model that lacks it.
        UsageError: a wish names a model that does not take part.
    """
    tokenizers = {name: load_tokenizer(member.files) for name, member in members.items()}
    if source in (UNION, BASE):
        result = load_tokenizer(members[base].files)
        if source == UNION:
            _unite(result, tokenizers, members)
    else:
        result = load_tokenizer(members[source].files if source in members else find_model(source))
    known = result.get_vocab()
    result.add_tokens([token for token in wishes or {} if token not in known])
    vocabulary = result.get_vocab()
    count = max(vocabulary.values()) + 1
    rows: dict[str, torch.Tensor] = {}
    for name, member in members.items():
        ids = {token: number for token, number in tokenizers[name].get_vocab().items() if number < member.rows}
        rows[name] = torch.full((count,), -1)
        for token, number in vocabulary.items():
            rows[name][number] = ids.get(token, -1)
    own = {name: found.clone() for name, found in rows.items()}
    wished: dict[int, tuple[str, int] | None] = {}
    for token, wish in (wishes or {}).items():
        number = vocabulary[token]
        if wish.force:
            for found in own.values():
                found[number] = -1
        if wish.zero:
            wished[number] = None
        elif wish.model is not None:
            wished[number] = _wished(token, wish, tokenizers, members)
    return Vocabulary(result, -count % multiple if multiple else 0, own, base, rows, wished)


def _unite(result: Any, tokenizers: Mapping[str, Any], members: Mapping[str, Member]) -> None:
    known = set(result.get_vocab())
    for name, tokenizer in tokenizers.items():
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        new = [
            token
            for token, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
            if token not in known and number < members[name].rows
        ]
        result.add_tokens([added.get(token, token) for token in new])
        known.update(new)


def _wished(token: str, wish: Wish, tokenizers: Mapping[str, Any], members: Mapping[str, Member]) -> tuple[str, int]:
    assert wish.model is not None
    if wish.model not in members:
        raise unknown_name(f"model for the token {token!r}", wish.model, members, "It must take part in the merge.")
    named = wish.token if wish.token is not None else token
    number = named if isinstance(named, int) else tokenizers[wish.model].get_vocab().get(named)
    if number is None:
        raise ModelError(f"the token {named!r} is not one of '{wish.model}'; name one that it has")
    if number >= members[wish.model].rows:
        raise UsageError(f"token id {number} of '{wish.model}' is beyond its {members[wish.model].rows} rows")
    return wish.model, number


def token_map(files: ModelFiles) -> dict[str, int]:
    """The token ids of a model by text."""
    vocabulary: dict[str, int] = load_tokenizer(files).get_vocab()
    return vocabulary


def save_tokenizer(tokenizer: Any, folder: Path, chat_template: str | None = None) -> None:
    """Write a tokenizer into `folder`, with another chat template where one is given."""
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(str(folder))
