from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uphold.core.errors import UsageError
from uphold.explain.circuits.entity_tracking import (
    DESIDERATA,
    LABELS,
    OBJECTS,
    Compact,
    box_prompts,
    corrupted,
    desideratum_scenes,
    draw_scenes,
    foils_of,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words_tokenizer(split: bool = False) -> Any:
    """A token per word, or per character."""
    words = ["the", "The", "is", "in", "Box", "contains", ",", ".", *LABELS, *OBJECTS]
    words += [char for char in sorted(set("".join(words))) if char not in words]
    tokenizer = Tokenizer(models.WordLevel({word: index + 1 for index, word in enumerate(words)}, unk_token="."))
    steps: list[Any] = [pre_tokenizers.Whitespace()]
    if split:
        steps.append(pre_tokenizers.Split("", "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@given(seed=st.integers(0, 1000), boxes=st.integers(1, 7))
def test_scenes_ask_for_what_is_in_a_box(seed: int, boxes: int) -> None:
    scenes = draw_scenes(20, generator(seed), boxes=boxes, labels=26, objects=84)
    rows = torch.arange(20)
    assert torch.equal(scenes.labels[rows, scenes.query], scenes.asked)
    assert torch.equal(scenes.objects[rows, scenes.query], scenes.answers)
    for row in range(20):
        assert len(set(scenes.labels[row].tolist())) == len(set(scenes.objects[row].tolist())) == boxes
        assert set(foils_of(scenes)[row].tolist()) | {int(scenes.answers[row])} == set(scenes.objects[row].tolist())


@given(seed=st.integers(0, 1000))
def test_corrupted_scenes_share_nothing_and_ask_for_no_box(seed: int) -> None:
    scenes = draw_scenes(10, generator(seed))
    other = corrupted(scenes, generator(seed + 1), labels=16, objects=24)
    assert torch.equal(other.query, (scenes.query + 1) % 4)
    for row in range(10):
        labels = {*scenes.labels[row].tolist(), *other.labels[row].tolist(), int(other.asked[row])}
        assert len(labels) == 9
        assert len({*scenes.objects[row].tolist(), *other.objects[row].tolist()}) == 8


@given(seed=st.integers(0, 1000), what=st.sampled_from(DESIDERATA))
def test_desiderata_ask_for_one_thing_only(seed: int, what: Any) -> None:
    base, source, targets = desideratum_scenes(what, 10, generator(seed))
    for row in range(10):
        ours, theirs = base.objects[row].tolist(), source.objects[row].tolist()
        assert not set(ours) & set(theirs)
        assert base.query[row] != source.query[row]
        candidates = {
            "base": ours[base.query[row]],
            "positional": ours[source.query[row]],
            "object": theirs[source.query[row]],
        }
        shared = set(base.labels[row].tolist()) & set(source.labels[row].tolist())
        assert len(shared) == (what == "label")
        if what == "label":
            assert shared == {int(source.asked[row])}
            candidates["label"] = ours[base.labels[row].tolist().index(int(source.asked[row]))]
        assert len(set(candidates.values())) == len(candidates)
        assert int(targets[row]) == candidates[what]


def test_the_compact_form_spells_its_scene() -> None:
    task = Compact()
    scenes = task.scenes(30, generator())
    prompts = task.prompts(scenes)
    ids, rows = prompts.inputs["input_ids"], torch.arange(30)
    assert ids.shape == (30, 10)
    assert task.vocabulary == 41
    assert torch.equal(ids[rows, prompts.roles["object"]], prompts.answers)
    assert torch.equal(ids[rows, prompts.roles["label"]], ids[:, -1])
    taught, targets = task.training(30, generator())
    asked = targets != -100
    assert asked.sum(1).eq(18).all()
    assert torch.equal(taught[asked], targets[asked])
    for row in range(30):
        boxes = dict(taught[row, 1:9].reshape(4, 2).tolist())
        assert [boxes[int(label)] for label in taught[row, 9::2]] == taught[row, 10::2].tolist()
    pairs = task.pairs("object", 8, generator())
    assert torch.equal(pairs.targets, pairs.source.answers)


@pytest.mark.parametrize("split", [False, True])
def test_roles_are_found_by_what_tokens_spell(split: bool) -> None:
    tokenizer = words_tokenizer(split)
    scenes = draw_scenes(12, generator(), boxes=7, labels=26, objects=len(OBJECTS))
    if split:
        scenes = draw_scenes(12, generator(4), boxes=2, labels=26, objects=len(OBJECTS))
        keep = torch.tensor([OBJECTS[a][0] != OBJECTS[b][0] for a, b in scenes.objects.tolist()])
        scenes = type(scenes)(*(part[keep] for part in vars(scenes).values()))
    prompts = box_prompts(scenes, tokenizer)
    ids, rows = prompts.inputs["input_ids"], torch.arange(len(scenes))
    spelled = {role: tokenizer.convert_ids_to_tokens(ids[rows, at]) for role, at in prompts.roles.items()}
    labels = [LABELS[label] for label in scenes.asked]
    things = [OBJECTS[thing] for thing in scenes.answers]
    assert spelled["query"] == spelled["label"] == labels
    assert spelled["object"] == ([thing[-1] for thing in things] if split else things)
    assert spelled["last"] == ["e" if split else "the"] * len(scenes)
    assert (prompts.roles["label"] < prompts.roles["query"]).all()
    assert tokenizer.convert_ids_to_tokens(prompts.answers) == [thing[0] if split else thing for thing in things]
    if not split:  # as in the paper: label, contains, the
        assert torch.equal(prompts.roles["query"], prompts.roles["last"] - 2)
        assert torch.equal(prompts.roles["object"], prompts.roles["label"] - 4)


def test_objects_that_begin_alike_are_refused() -> None:
    scenes = draw_scenes(40, generator(), boxes=7, labels=26, objects=len(OBJECTS))
    with pytest.raises(UsageError, match="begin with the same token"):
        box_prompts(scenes, words_tokenizer(split=True))
    with pytest.raises(UsageError, match="take a fast one"):
        box_prompts(scenes, object())


def test_scenes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="5 boxes need as many"):
        draw_scenes(1, generator(), boxes=5, labels=4)
    with pytest.raises(UsageError, match="unknown desideratum 'objet': did you mean 'object'"):
        desideratum_scenes("objet", 1, generator())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="need 9 labels and 8 objects"):
        corrupted(draw_scenes(1, generator()), generator(), labels=8, objects=24)
    with pytest.raises(UsageError, match="pairs of scenes need 3 boxes"):
        desideratum_scenes("label", 1, generator(), boxes=2)
