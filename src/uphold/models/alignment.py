"""Where two tokenisations of one text agree.

Both are cut at the places in the text where a token of each ends: between two neighbouring cuts stands a segment, one
or several tokens on either side. A character that a tokenizer splits into several byte tokens is never cut.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.errors import ModelError
from uphold.models.encode import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
SPACE = "▁"
"""What SentencePiece writes for a space."""


class Segment(NamedTuple):
    """Tokens of two tokenisations that stand for the same stretch of text."""

    student: range
    """Positions in the student's row; never empty."""
    teacher: range
    """The same in the teacher's row."""


@dataclass(frozen=True)
class Tokenised:
    """A text as one tokenizer cuts it."""

    row: Encoded
    spans: tuple[Span, ...]
    """Start and end of each token in the text, in characters; a special token has an empty span."""

    @property
    def tokens(self) -> list[int]:
        """All token ids."""
        return [*self.row.prompt, *self.row.answer]


def tokenised(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, instance: int = -1, ends: bool = False
) -> Tokenised:
    """A prompt and its answer as one text, with the place of every token.

    Args:
        tokenizer: a fast one.
        prompt: white space at its end counts as the answer's, as in `uphold.models.encode.Encoder`.
        answer: what follows it.
        instance: the number of the row.
        ends: whether the end-of-text token follows.

    Raises:
        ModelError: the tokenizer cannot say where its tokens stand, or the answer has no tokens of its own.
    """
    text = prompt + answer
    bos = tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    try:
        whole = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} cannot say where in a text its tokens stand: "
            "convert it to a fast tokenizer (tokenizer.json)"
        ) from error
    ids, spans = list(whole["input_ids"]), [(int(start), int(end)) for start, end in whole["offset_mapping"]]
    head = len(tokenizer(prompt.rstrip(), add_special_tokens=special)["input_ids"])
    if not 0 < head < len(ids):
        raise ModelError(f"the answer {answer!r} has no tokens of its own after {prompt[-40:]!r}: use a delimiter")
    end = tokenizer.eos_token_id
    if ends and end is not None:
        ids.append(int(end))
        spans.append((len(text), len(text)))
    return Tokenised(Encoded(ids[:head], ids[head:], instance), tuple(spans))


def segments(student: Sequence[Span], teacher: Sequence[Span]) -> list[Segment]:
    """The segments of two tokenisations of one text, in its order.

    A segment that begins with a row's first token is left out: nothing predicts that token. So are special tokens, but
    for an end-of-text token that is the last of both rows.

    Args:
        student: start and end of each token, see `Tokenised.spans`.
        teacher: the same for the other tokenizer.
    """
    ours, theirs = _cuts(student), _cuts(teacher)
    found: list[Segment] = []
    mine = other = 0
    for place in sorted(ours.keys() & theirs.keys()):
        segment = Segment(range(mine, ours[place] + 1), range(other, theirs[place] + 1))
        mine, other = segment.student.stop, segment.teacher.stop
        found.append(_without_empty(segment, student, teacher))
    if _ends(student) and _ends(teacher):
        found.append(Segment(range(len(student) - 1, len(student)), range(len(teacher) - 1, len(teacher))))
    return [one for one in found if one.student and one.teacher and one.student.start > 0 and one.teacher.start > 0]


def _cuts(spans: Sequence[Span]) -> dict[int, int]:
    """For each place in the text where a token ends and the next does not share its last character: that token."""
    found: dict[int, int] = {}
    reached = 0
    full = [(index, *span) for index, span in enumerate(spans) if span[0] < span[1]]
    for (index, _, end), after in zip(full, [*(start for _, start, _ in full[1:]), None], strict=True):
        reached = max(reached, end)
        if after is None or after >= reached:
            found[reached] = index
    return found


def _without_empty(segment: Segment, student: Sequence[Span], teacher: Sequence[Span]) -> Segment:
    """The segment without the special tokens at its beginning."""
    mine, other = segment
    while mine and student[mine.start][0] == student[mine.start][1]:
        mine = mine[1:]
    while other and teacher[other.start][0] == teacher[other.start][1]:
        other = other[1:]
    return Segment(mine, other)


def _ends(spans: Sequence[Span]) -> bool:
    """Whether the last token is a special one behind the text."""
    return len(spans) > 1 and spans[-1][0] == spans[-1][1] and spans[-1][1] >= max(end for _, end in spans)


class SameTokens(NamedTuple):
    """Tokens that stand for the same text in two vocabularies, lists of one length."""

    student: list[int]
    teacher: list[int]


def same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> SameTokens:
    """The tokens with equal bytes in both vocabularies, special tokens of one name, and the two end-of-text tokens.

    Raises:
        ModelError: a tokenizer does not say how its tokens are written as text.
    """
    ours, theirs = token_bytes(student), token_bytes(teacher)
    first: dict[bytes, int] = {}
    for token, text in sorted(theirs.items(), reverse=True):
        first[text] = token
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for token, text in sorted(ours.items()):
        other = first.get(text)
        if other is not None and other not in taken:
            pairs[token] = other
            taken.add(other)
    named = dict(zip(teacher.all_special_tokens, teacher.all_special_ids, strict=True))
    for name, token in zip(student.all_special_tokens, student.all_special_ids, strict=True):
        if name in named:
            pairs[token] = named[name]
    if student.eos_token_id is not None and teacher.eos_token_id is not None:
        pairs = {token: other for token, other in pairs.items() if other != teacher.eos_token_id}
        pairs[int(student.eos_token_id)] = int(teacher.eos_token_id)
    return SameTokens(list(pairs), list(pairs.values()))


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The UTF-8 bytes of every token but the special ones.

    Raises:
        ModelError: it is no fast tokenizer.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} does not say how its tokens are written as text: "
            "convert it to a fast tokenizer (tokenizer.json)"
        )
    described = [
        json.loads(part.__getstate__()) for part in (backend.decoder, backend.pre_tokenizer) if part is not None
    ]
    special = set(tokenizer.all_special_ids)
    read = _read_bytes if "ByteLevel" in _types(described) else _read_text
    return {token: read(text) for text, token in tokenizer.get_vocab().items() if token not in special}


def _types(described: Any) -> set[str]:
    """The names of all parts of a tokenizer."""
    if isinstance(described, list):
        return {name for one in described for name in _types(one)}
    if not isinstance(described, dict):
        return set()
    own = {str(described["type"])} if "type" in described else set()
    return own.union(*(_types(described[key]) for key in ("decoders", "pretokenizers") if key in described))


def _read_bytes(token: str) -> bytes:
    """A token of a byte-level tokenizer, where every byte is a printable character; added tokens are plain text."""
    known = _byte_of()
    if all(sign in known for sign in token):
        return bytes(known[sign] for sign in token)
    return token.encode()


def _read_text(token: str) -> bytes:
    """A token of any other tokenizer."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


@lru_cache
def _byte_of() -> dict[str, int]:
    """Which byte a character stands for in byte-level vocabularies (GPT-2).

    Printable bytes stand for themselves, the characters from 256 on for the others, in their order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
