"""Entity tracking: several boxes with a label and an object each; which object is in the box asked for?

Prakash et al., arXiv:2402.14811. Two forms of one kind of scene: the paper's sentences, and a compact one for models
made on the spot, of single tokens: begin, (label, object) for every box, the label asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from uphold.core.errors import UsageError, unknown_name
from uphold.explain.circuits.masking import Pairs
from uphold.explain.circuits.prompts import Prompts

Desideratum = Literal["positional", "object", "label"]
"""What the answer has to become: the base's object in the box whose number the source asks for, the source's own
answer, or the base's object in the box whose label the source asks for."""
DESIDERATA: tuple[Desideratum, ...] = get_args(Desideratum)
_WORDS = """
apple ball bell boat bomb bone book boot bottle bowl bread brick brush bus cake camera car card chain chair
clock coat coin computer cream cross crown cup desk dish doctor dress drink drug egg engine fan file film fish
flag flower game gift glass gold gun guitar hat ice jacket key knife lamp leaf letter machine magazine map
medicine milk mirror money newspaper note paper pen phone picture pipe plane plant plate pot radio ring rock
rope rose shell shirt shoe silver stone string suit tea ticket train tree watch wire
"""
LABELS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
OBJECTS = tuple(_WORDS.split())
"""Common nouns, most of which are one token with a space before them."""
TRAINED_QUERIES = 18
"""Questions in a row of the compact form that is trained on: with few, nothing is learned."""


@dataclass(frozen=True)
class Scenes:
    """What is in which box, one scene per row; labels and objects are numbers."""

    labels: torch.Tensor
    """Shape (rows, boxes), different within a row."""
    objects: torch.Tensor
    """Shape (rows, boxes), different within a row."""
    query: torch.Tensor
    """Number of the box asked for, shape (rows,)."""
    asked: torch.Tensor
    """The label asked for, shape (rows,): that of the box, unless the scene was corrupted."""

    def __len__(self) -> int:
        return len(self.query)

    @property
    def answers(self) -> torch.Tensor:
        """The object in the box asked for, shape (rows,)."""
        return self.objects.gather(1, self.query[:, None])[:, 0]


def draw_scenes(
    count: int, generator: torch.Generator, *, boxes: int = 4, labels: int = 16, objects: int = 24
) -> Scenes:
    """Random scenes: `boxes` of `labels` labels and of `objects` objects each, without repetition.

    Raises:
        UsageError: there are not enough of them.
    """
    if not 0 < boxes <= min(labels, objects):
        raise UsageError(f"{boxes} boxes need as many labels and objects, not {labels} and {objects}")
    drawn = _drawn(count, labels, generator)[:, :boxes], _drawn(count, objects, generator)[:, :boxes]
    return _asked(*drawn, torch.randint(boxes, (count,), generator=generator))


def corrupted(scenes: Scenes, generator: torch.Generator, *, labels: int, objects: int) -> Scenes:
    """Other scenes, row by row, with nothing of the given ones: the next box is asked for, by a label of no box."""
    boxes = scenes.labels.shape[1]
    if labels < 2 * boxes + 1 or objects < 2 * boxes:
        raise UsageError(f"other scenes of {boxes} boxes need {2 * boxes + 1} labels and {2 * boxes} objects")
    spare = _others(scenes.labels, labels, generator)
    others = _others(scenes.objects, objects, generator)[:, :boxes]
    found = _asked(spare[:, :boxes], others, (scenes.query + 1) % boxes)
    return replace(found, asked=spare[:, boxes])


def desideratum_scenes(
    what: Desideratum, count: int, generator: torch.Generator, *, boxes: int = 4, labels: int = 16, objects: int = 24
) -> tuple[Scenes, Scenes, torch.Tensor]:
    """Base and source scenes that tell one kind of information from the others, and the objects to be answered.

    Base and source share no label and no object, but for the one label that `label` asks for, and ask for boxes of
    different numbers in their contexts.
    """
    if what not in DESIDERATA:
        raise unknown_name("desideratum", what, DESIDERATA)
    if boxes < 3 or labels < 2 * boxes or objects < 2 * boxes:
        raise UsageError(f"pairs of scenes need 3 boxes, and 2 labels and 2 objects for each, not {boxes}")
    base = draw_scenes(count, generator, boxes=boxes, labels=labels, objects=objects)
    rows = torch.arange(count)
    steps = torch.stack([torch.randperm(boxes - 1, generator=generator)[:2] + 1 for _ in range(count)])
    query, meant = (base.query + steps[:, 0]) % boxes, (base.query + steps[:, 1]) % boxes
    others = _others(base.labels, labels, generator)[:, :boxes]
    if what == "label":
        others[rows, query] = base.labels[rows, meant]
    source = _asked(others, _others(base.objects, objects, generator)[:, :boxes], query)
    place = {"positional": query, "label": meant}.get(what)
    targets = source.answers if place is None else base.objects[rows, place]
    return base, source, targets


def _asked(labels: torch.Tensor, objects: torch.Tensor, query: torch.Tensor) -> Scenes:
    return Scenes(labels, objects, query, labels.gather(1, query[:, None])[:, 0])


def _drawn(count: int, of: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, of, generator=generator).argsort(1)


def _others(taken: torch.Tensor, of: int, generator: torch.Generator) -> torch.Tensor:
    """All numbers that are not taken in a row, in random order."""
    keys = torch.rand(len(taken), of, generator=generator).scatter(1, taken, 2.0)
    return keys.argsort(1)[:, : of - taken.shape[1]]


@dataclass(frozen=True)
class Compact:
    """The compact form. Token 0 begins, labels follow, then objects. Roles: `last`, `label` and `object` asked for."""

    boxes: int = 4
    labels: int = 16
    objects: int = 24

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return 1 + self.labels + self.objects

    def scenes(self, count: int, generator: torch.Generator) -> Scenes:
        """Random scenes."""
        return draw_scenes(count, generator, boxes=self.boxes, labels=self.labels, objects=self.objects)

    def prompts(self, scenes: Scenes) -> Prompts:
        """Rows of 2 + 2 boxes tokens, with the objects of the other boxes as foils."""
        last = torch.full((len(scenes),), 1 + 2 * self.boxes)
        label = 1 + 2 * scenes.query
        ids = torch.cat([self._context(scenes), 1 + scenes.asked[:, None]], 1)
        roles = {"last": last, "label": label, "object": label + 1}
        answers, foils = self.tokens(scenes.answers), self.tokens(foils_of(scenes))
        return Prompts({"input_ids": ids}, last, answers, foils, roles)

    def training(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows with `TRAINED_QUERIES` questions and answers each, and what is to be learned of them, -100 elsewhere."""
        scenes = self.scenes(count, generator)
        query = torch.randint(self.boxes, (count, TRAINED_QUERIES), generator=generator)
        asked = 1 + scenes.labels.gather(1, query)
        answers = self.tokens(scenes.objects.gather(1, query))
        context = self._context(scenes)
        ids = torch.cat([context, torch.stack([asked, answers], 2).flatten(1)], 1)
        targets = torch.full_like(ids, -100)
        targets[:, context.shape[1] + 1 :: 2] = answers
        return ids, targets

    def pairs(self, what: Desideratum, count: int, generator: torch.Generator) -> Pairs:
        """Pairs of prompts for one desideratum."""
        shape = {"boxes": self.boxes, "labels": self.labels, "objects": self.objects}
        base, source, targets = desideratum_scenes(what, count, generator, **shape)
        return Pairs(self.prompts(base), self.prompts(source), self.tokens(targets))

    def tokens(self, objects: torch.Tensor) -> torch.Tensor:
        """The tokens of objects."""
        return 1 + self.labels + objects

    def _context(self, scenes: Scenes) -> torch.Tensor:
        boxes = torch.stack([1 + scenes.labels, self.tokens(scenes.objects)], 2).flatten(1)
        return torch.cat([torch.zeros(len(scenes), 1, dtype=torch.long), boxes], 1)


def foils_of(scenes: Scenes) -> torch.Tensor:
    """The objects in the boxes that are not asked for, shape (rows, boxes - 1)."""
    boxes = scenes.labels.shape[1]
    others = (scenes.query[:, None] + torch.arange(1, boxes)) % boxes
    return scenes.objects.gather(1, others)


def box_prompts(scenes: Scenes, tokenizer: Any, objects: tuple[str, ...] = OBJECTS) -> Prompts:
    """The paper's sentences: `The apple is in Box F, ... Box F contains the`, whose next token is the object's first.

    Roles, found by what the tokens spell and not by counting them: `last`; `query`, the label asked for; `label`, the
    same label where the box was named (of the box asked for, where the label asked for names none); `object`, in it.

    Args:
        scenes: of at most 26 labels, and of as many objects as there are words.
        tokenizer: a fast one of transformers, which says where its tokens are in the text.
        objects: the words.

    Raises:
        UsageError: the tokenizer is not a fast one, or two objects of a scene begin with the same token.
    """
    texts, spans = zip(*[_sentences(scenes, row, objects) for row in range(len(scenes))], strict=True)
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"{type(tokenizer).__name__} does not say where its tokens are in a text: take a fast one")
    encoded = [tokenizer(text, return_offsets_mapping=True) for text in texts]
    length = max(len(one["input_ids"]) for one in encoded)
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    roles = {name: torch.zeros(len(texts), dtype=torch.long) for name in ("last", *spans[0])}
    for row, one in enumerate(encoded):
        count = len(one["input_ids"])
        ids[row, :count] = torch.tensor(one["input_ids"])
        mask[row, :count] = 1
        offsets = one["offset_mapping"]
        roles["last"][row] = _token_at(offsets, len(texts[row]) - 1, texts[row])
        for name, end in spans[row].items():
            roles[name][row] = _token_at(offsets, end, texts[row])
    first = torch.tensor([_first_token(tokenizer, word) for word in objects])
    answers, foils = first[scenes.answers], first[foils_of(scenes)]
    if bool((foils == answers[:, None]).any()):
        raise UsageError("two objects of a scene begin with the same token: choose `objects` that are single tokens")
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Prompts(inputs, roles["last"], answers, foils, roles)


def _sentences(scenes: Scenes, row: int, objects: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """A text, and by role the place of the last character of its word."""
    text, ends = "", {}
    for box, (label, thing) in enumerate(zip(scenes.labels[row].tolist(), scenes.objects[row].tolist(), strict=True)):
        text += f"{', the' if text else 'The'} {objects[thing]}"
        if box == int(scenes.query[row]):
            ends["object"] = len(text) - 1
        text += f" is in Box {LABELS[label]}"
        if box == int(scenes.query[row]):
            ends["label"] = len(text) - 1
    text += f". Box {LABELS[int(scenes.asked[row])]}"
    ends["query"] = len(text) - 1
    return f"{text} contains the", ends


def _token_at(offsets: list[tuple[int, int]], place: int, text: str) -> int:
    found = [number for number, (start, stop) in enumerate(offsets) if start <= place < stop]
    if len(found) != 1:
        raise UsageError(f"{len(found) or 'no'} tokens hold character {place} of {text!r}: expected one")
    return found[0]


def _first_token(tokenizer: Any, word: str) -> int:
    """The first token of a word behind a space."""
    encoded = tokenizer(f"the {word}", return_offsets_mapping=True)
    return int(encoded["input_ids"][_token_at(encoded["offset_mapping"], len("the "), f"the {word}")])
