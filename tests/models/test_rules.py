from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from tests.models.losses import draw, loss_of, predictions, seen
from uphold.models import distillation
from uphold.models.divergence import ForwardKL, GoldStatistics, gold_statistics
from uphold.models.rules import Term, Tokens, Weights


@dataclass
class Watching:
    """A rule that keeps what it is shown."""

    whole_sequences: bool = False
    shown: list[Tokens] = field(default_factory=list)

    def __call__(self, tokens: Tokens) -> Weights:
        student, *teachers = (GoldStatistics(one.right, one.logprob) for one in (tokens.student, *tokens.teachers))
        self.shown.append(Tokens(tokens.trained, student, tuple(teachers), tokens.sequences))
        return Weights((Term("kl", ForwardKL(), 0, tokens.none + 1),))


TRAINED = predictions([3, 1, 4, 1, 5, 0], sequence=[0, 0, 0, 2, 2, 2], is_answer=[False, True, True] * 2)


def test_a_rule_sees_every_token_once_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", 2 * 7)
    rule = Watching()
    student, teacher = draw(6, 7, seed=1), draw(6, 7, seed=2)
    loss_of(rule, student, [teacher], TRAINED)
    assert [len(tokens.none) for tokens in rule.shown] == [2, 2, 2]
    for name in ("sequence", "position", "targets", "is_answer", "instance"):
        together = torch.cat([getattr(tokens.trained, name) for tokens in rule.shown])
        assert torch.equal(together, getattr(TRAINED, name))
    for index, logits in enumerate((student, teacher)):
        expected = gold_statistics(logits, TRAINED.targets)
        found = [tokens.student if index == 0 else tokens.teachers[0] for tokens in rule.shown]
        assert torch.equal(torch.cat([one.right for one in found]), expected.right)
        assert torch.allclose(torch.cat([one.logprob for one in found]), expected.logprob)
        assert not any(one.logprob.requires_grad for one in found)
    assert all(tokens.sequences is None for tokens in rule.shown)
    assert not rule.shown[0].none.any()


def test_likelihoods_of_whole_sequences_are_the_same_in_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", 7)
    rule = Watching(whole_sequences=True)
    student, teacher = draw(6, 7, seed=1), draw(6, 7, seed=2)
    loss_of(rule, student, [teacher], TRAINED)
    gold = student.log_softmax(-1).gather(1, TRAINED.targets[:, None])[:, 0]
    for tokens in rule.shown:
        assert tokens.sequences is not None
        assert torch.allclose(
            tokens.sequences.student, torch.stack([gold[:3].sum(), gold.new_zeros(()), gold[3:].sum()])
        )
        expected = seen(rule, student, [teacher], TRAINED).sequences
        assert expected is not None
        assert torch.allclose(tokens.sequences.teachers[0], expected.teachers[0])
