from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import save_tiny_model
from uphold.models.adapter import fresh_adapter
from uphold.models.aligned_loss import AcrossVocabularies, Vocabularies
from uphold.models.aligned_objective import SEGMENT_MASKS, AlignedDistillation, AlignedText
from uphold.models.alignment import same_tokens, segments, tokenised
from uphold.models.encode import Batch, collate
from uphold.models.load import Loaded, load
from uphold.models.objective import Distillation, FrozenTeacher
from uphold.repair.muscle import MuscleRule

TEXTS = [("ab 12:", "cd"), ("x=1", "abc 3"), ("hello ", "a")]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model whose letters have other numbers, some of them none."""
    return load(save_tiny_model(tmp_path_factory.mktemp("other") / "m", 7, letters="zyxabc=: 0123hello"[::-1]))


def texts_of(student: Loaded, teacher: Loaded) -> list[AlignedText]:
    made = []
    for number, (prompt, answer) in enumerate(TEXTS):
        mine, theirs = (tokenised(one.tokenizer, prompt, answer, number, True) for one in (student, teacher))
        made.append(AlignedText(mine, theirs, segments(mine.spans, theirs.spans)))
    return made


def objective_of(student: Loaded, old: Loaded, new: Loaded, mask: Any, tokens: Any = "all") -> AlignedDistillation:
    sizes = [one.model.config.vocab_size for one in (student, old)]
    both = Vocabularies(same_tokens(student.tokenizer, old.tokenizer), *sizes)
    return AlignedDistillation(
        texts_of(student, old), old.model, new.model, AcrossVocabularies(both, 2.0), mask, tokens
    )


def batch_of(objective: AlignedDistillation, padding: int = 0) -> Batch:
    return collate([text.student.row for text in objective.texts], padding)


@pytest.mark.parametrize("tokens", ["all", "answer"])
@pytest.mark.parametrize("mask", ["student-wrong", "new-wrong", "old-correct", "old-only"])
def test_with_one_vocabulary_it_is_muscle(model_v1: Path, model_v2: Path, mask: Any, tokens: Any) -> None:
    """But for the token after the first: no segment begins where nothing predicts it, and MUSCLE agrees there."""
    old, new = load(model_v1), load(model_v2)
    student = fresh_adapter(new, 4, 8, 0.0, seed=0)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05
    aligned = objective_of(new, old, new, mask, tokens)
    batch = batch_of(aligned)
    plain = Distillation(MuscleRule(mask, 2.0), (FrozenTeacher(old.model), FrozenTeacher(new.model)), tokens)
    assert aligned.count(batch) == plain.count(batch)
    totals, gradients = [], []
    for one in (aligned, plain):
        total = one(student, batch).total
        totals.append(total.item())
        gradients.append(torch.autograd.grad(total, [p for p in student.parameters() if p.requires_grad]))
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", SEGMENT_MASKS)
def test_padding_changes_nothing_and_only_the_student_gets_gradients(model_v2: Path, other: Loaded, mask: Any) -> None:
    new = load(model_v2)
    student = fresh_adapter(new, 4, 8, 0.0, seed=0)
    aligned = objective_of(new, other, new, mask)
    losses = [aligned(student, batch_of(aligned, padding)) for padding in (0, 5)]
    assert losses[0].total.item() == pytest.approx(losses[1].total.item(), rel=1e-5)
    losses[0].total.backward()
    assert all(p.grad is None for model in (other.model, new.model) for p in model.parameters())
    count = sum(len(text.segments) for text in aligned.texts)
    assert losses[0].logs["old_rate"][1] == count
    if mask == "old-only":
        assert losses[0].logs["old_rate"][0] == count
        assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_at_the_start_only_what_follows_the_old_model_counts(model_v2: Path, other: Loaded) -> None:
    """The student equals the new model, whose term is zero."""
    new = load(model_v2)
    student = fresh_adapter(new, 4, 8, 0.0, seed=0)
    aligned = objective_of(new, other, new, "student-wrong")
    logs = aligned(student, batch_of(aligned)).logs
    assert logs["loss"][0] == pytest.approx(logs["old_first_token"][0] + logs["old_segment"][0], rel=1e-4)
    assert logs["old_first_token"][0] > 0


def test_only_the_answer_is_trained_where_asked(model_v2: Path, other: Loaded) -> None:
    new = load(model_v2)
    aligned = objective_of(new, other, new, "old-only", "answer")
    measured = aligned(fresh_adapter(new, 4, 8, 0.0, seed=0), batch_of(aligned))
    assert measured.logs["old_rate"][1] == sum(
        one.student.start >= len(text.student.row.prompt) for text in aligned.texts for one in text.segments
    )
    assert aligned.count(batch_of(aligned)) == sum(len(text.student.row.answer) for text in aligned.texts)
