from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import save_tiny_model, write_task
from tests.models.losses import crossed, draw, kl, loss_of, predictions, seen
from uphold import compare, load_repair
from uphold.core.errors import TokenizerMismatchError, UsageError
from uphold.models.adapter import fresh_adapter, trainable_copy
from uphold.models.encode import Encoded, collate
from uphold.models.fingerprint import module_fingerprint, weights_hash
from uphold.models.load import Loaded, load
from uphold.models.objective import Distillation, FrozenTeacher
from uphold.models.train import trained_tokens
from uphold.repair import AdaptConfig, MuscleConfig, Repair, adapt, muscle
from uphold.repair.muscle import MASKS, MuscleRule

ROWS = [Encoded([5, 6, 7], [8, 9]), Encoded([10, 11], [12]), Encoded([13, 14, 15, 16], [17, 18])]
TRAINED = predictions([8, 2, 5, 1, 7, 7, 3], sequence=[0, 0, 0, 1, 1, 2, 2])
TINY = {"epochs": 2, "learning_rate": 5e-3, "warmup_steps": 2, "batch_size": 16, "micro_batch": 8, "rank": 4}


@pytest.fixture(scope="module")
def trio(model_v1: Path, model_v2: Path) -> tuple[Loaded, Loaded, Any]:
    """Old, new, and a student that is a copy of new."""
    old, new = load(model_v1), load(model_v2)
    return old, new, fresh_adapter(new, 4, 8, 0.0, seed=0)


def objective(old: Loaded, new: Loaded) -> Distillation:
    return Distillation(MuscleRule(), (FrozenTeacher(old.model), FrozenTeacher(new.model)), "all")


def test_at_step_0_only_wrong_tokens_count(trio: tuple[Loaded, Loaded, Any]) -> None:
    """MC equals M2, so the new teacher's term is zero and the loss is the old teacher's over wrong tokens."""
    old, new, student = trio
    batch = collate(ROWS)
    trained = trained_tokens(batch, "all")
    mine, theirs = (
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[trained.sequence, trained.position]
        for model in (student, old.model)
    )
    wrong = mine.argmax(-1) != trained.targets
    measured = objective(old, new)(student, batch)
    assert measured.total.item() == pytest.approx(kl(theirs, mine, 2.0)[wrong].sum().item(), rel=1e-4)
    assert measured.logs["loss"][1] == len(trained.targets) == 4 + 2 + 5
    assert measured.logs["kl_new_prompt"][0] == pytest.approx(0, abs=1e-5)


def test_equal_teachers_give_no_loss_and_leave_the_adapter_bit_identical(trio: tuple[Loaded, Loaded, Any]) -> None:
    _, new, _ = trio
    student = fresh_adapter(new, 4, 8, 0.0, seed=0)
    before = module_fingerprint(student, "x")["weights"]
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    loss = objective(new, new)(student, collate(ROWS)).total
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())
    optimizer.step()
    assert module_fingerprint(student, "x")["weights"] == before


@pytest.mark.parametrize("right", [True, False])
def test_the_teacher_that_the_mask_leaves_out_does_not_matter(right: bool) -> None:
    student = torch.nn.functional.one_hot(TRAINED.targets, 24).float() * (9 if right else -9)
    old, other, new = (draw(7, 24, seed=seed) for seed in (1, 2, 3))
    if right:
        one, two = (
            loss_of(MuscleRule(), student, [old, new], TRAINED),
            loss_of(MuscleRule(), student, [other, new], TRAINED),
        )
    else:
        one, two = (
            loss_of(MuscleRule(), student, [new, old], TRAINED),
            loss_of(MuscleRule(), student, [new, other], TRAINED),
        )
    assert one.total == two.total
    assert torch.equal(one.gradient, two.gradient)


@pytest.mark.parametrize("mask", MASKS)
def test_the_mask_ignores_temperature_and_shifted_logits(mask: Any) -> None:
    student, old, new = (draw(7, 24, seed=seed) for seed in (1, 2, 3))

    def follows(rule: MuscleRule, *logits: torch.Tensor) -> list[bool]:
        found = rule.follows_old(seen(rule, logits[0], logits[1:], TRAINED))
        assert not found.requires_grad
        return found.tolist()  # type: ignore[no-any-return]

    plain = follows(MuscleRule(mask), student, old, new)
    assert follows(MuscleRule(mask), student + 7, old + 3, new + 3) == plain
    assert follows(MuscleRule(mask, temperature=50.0), student, old, new) == plain


def test_every_mask_by_hand() -> None:
    """One sequence of three predictions over two tokens; gold is token 1 each time."""
    trained = predictions([1, 1, 1])
    student = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 5.0]])
    old = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    new = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    expected = {
        "student-wrong": [False, True, False],
        "new-wrong": [True, True, False],
        "old-correct": [False, True, True],
        "old-only": [True, True, True],
        # log-probabilities of gold: student -.31, -1.31, -.007; old -1.31, -.31, -.31
        "likelihood-token": [False, True, False],
        # sums: student -1.63, old -1.94: the student likes the sequence more
        "likelihood-sequence": [False, False, False],
    }
    assert set(expected) == set(MASKS)
    for mask, values in expected.items():
        rule = MuscleRule(mask)  # type: ignore[arg-type]
        assert rule.follows_old(seen(rule, student, [old, new], trained)).tolist() == values, mask
        weighed = loss_of(rule, student, [old, new], trained)
        chosen = torch.where(torch.tensor(values)[:, None], old, new)
        assert weighed.total == pytest.approx(float(kl(chosen, student, 2.0).sum()), rel=1e-5), mask


def test_a_sequences_likelihood_decides_for_all_of_its_tokens() -> None:
    rule = MuscleRule("likelihood-sequence")
    student, old = draw(7, 24, seed=1), draw(7, 24, seed=2)
    better = -crossed(old, TRAINED) + crossed(student, TRAINED)
    expected = [float(better[TRAINED.sequence == row].sum()) > 0 for row in (0, 0, 0, 1, 1, 2, 2)]
    assert rule.follows_old(seen(rule, student, [old, old], TRAINED)).tolist() == expected
    assert len(set(expected)) == 2


def test_lambda_1_is_the_pure_loss_and_0_is_cross_entropy() -> None:
    student, old, new = (draw(7, 24, seed=seed) for seed in (1, 2, 3))
    pure, half, none = (
        loss_of(MuscleRule(kl_weight=weight), student, [old, new], TRAINED) for weight in (1.0, 0.5, 0.0)
    )
    assert none.total == pytest.approx(float(crossed(student, TRAINED).sum()), rel=1e-5)
    assert half.total == pytest.approx((pure.total + none.total) / 2, rel=1e-5)
    assert torch.allclose(half.gradient, (pure.gradient + none.gradient) / 2, atol=1e-6)
    assert MuscleConfig().weight == 1.0
    assert MuscleConfig(mask="likelihood-token").weight == 0.5
    assert MuscleConfig(mask="likelihood-token", kl_weight=0.9).weight == 0.9


def test_padding_changes_nothing(trio: tuple[Loaded, Loaded, Any]) -> None:
    old, new, student = trio
    losses = [objective(old, new)(student, collate(ROWS, extra)).total.item() for extra in (0, 5, 17)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_no_gradient_reaches_teachers(trio: tuple[Loaded, Loaded, Any]) -> None:
    old, new, student = trio
    objective(old, new)(student, collate(ROWS)).total.backward()
    assert all(p.grad is None for model in (old.model, new.model) for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'old-correct'"):
        MuscleConfig(mask="old-corect")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="temperature must be above 0"):
        MuscleConfig(temperature=0)
    with pytest.raises(UsageError, match=r"kl_weight in \[0, 1\]"):
        MuscleConfig(kl_weight=1.5)


@pytest.fixture(scope="module")
def repaired(
    model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Repair, dict[str, Any], Path]]:
    """A whole repair on tiny models: adapters, MUSCLE, both controls."""
    folder = tmp_path_factory.mktemp("repair")
    patch = pytest.MonkeyPatch()
    patch.setenv("UPHOLD_STORE", str(folder / "store"))
    task = write_task(folder, 120)
    ones = [adapt(base, task, out=folder / base.name, config=AdaptConfig(**TINY)) for base in (model_v1, model_v2)]
    given = {"old": ones[0].reference, "new": ones[1].reference, "task": task}
    hashes = [weights_hash(path) for path in (ones[0].adapter, ones[1].adapter, model_v1, model_v2)]
    config = MuscleConfig(**TINY, force=True, select="nfr")
    result = muscle(given["old"], given["new"], task, out=folder / "out", config=config)
    assert hashes == [weights_hash(path) for path in (ones[0].adapter, ones[1].adapter, model_v1, model_v2)]
    yield result, given | {"config": config}, folder
    patch.undo()


def test_the_repair_is_compared_with_the_old_model_and_has_its_controls(repaired: tuple[Repair, Any, Path]) -> None:
    result, given, folder = repaired
    assert [(arm.name, arm.control) for arm in result.arms] == [
        ("repaired", False),
        ("control-ce", True),
        ("control-new", True),
    ]
    for arm in result.arms:
        assert arm.comparison.old.sha256 == result.before.old.sha256
        assert [entry.epoch for entry in arm.history] == [0, 1, 2]
        assert sum(entry.chosen for entry in arm.history) == 1
    again = compare(given["old"], f"{given['new'].partition('+')[0]}+{folder / 'out'}", given["task"])
    assert again.rates == result.repaired.comparison.rates


def test_terms_are_logged_apart_for_prompt_and_answer(repaired: tuple[Repair, Any, Path]) -> None:
    result, _, _ = repaired
    logged = result.repaired.history[1].train
    assert {"loss", "kl_old_rate_prompt", "kl_old_rate_answer", "kl_old_answer"} <= logged.keys()
    assert 0 < logged["kl_old_rate_prompt"] <= 1
    assert logged["kl_old_rate_answer"] + logged["kl_new_rate_answer"] == pytest.approx(1)
    assert {"cross_entropy_prompt", "cross_entropy_answer"} <= result.arms[1].history[1].train.keys()
    assert result.arms[2].history[1].train["kl_answer"] == pytest.approx(0, abs=1e-6)


def test_it_loads_again_as_it_was_saved_and_its_card_carries_the_table(repaired: tuple[Repair, Any, Path]) -> None:
    result, _, folder = repaired
    assert str(load_repair(folder / "out")) == str(result)
    card = (folder / "out" / "adapter" / "README.md").read_text()
    assert all(cell in card for row in result.table()[1:] for cell in row)


def test_repeating_the_call_reads_what_is_there(
    repaired: tuple[Repair, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, given, folder = repaired
    monkeypatch.setenv("UPHOLD_STORE", str(folder / "store"))
    rule = sys.modules["uphold.repair.muscle"].MuscleRule
    monkeypatch.setattr(rule, "__call__", lambda *_: pytest.fail("trained again"))
    again = muscle(given["old"], given["new"], given["task"], out=folder / "out", config=given["config"])
    assert str(again) == str(result)


def test_loaded_models_are_taken_as_well(repaired: tuple[Repair, Any, Path], tmp_path: Path) -> None:
    result, given, _ = repaired
    old, new = load(given["old"]), load(given["new"])
    config = replace(given["config"], controls=False)
    pairs = [(one.model, one.tokenizer) for one in (old, new)]
    in_memory = muscle(pairs[0], pairs[1], given["task"], out=tmp_path / "out", config=config)
    assert in_memory.repaired.comparison.matrix == result.repaired.comparison.matrix


def test_a_worse_update_is_refused(
    model_v1: Path, model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uphold.repair.protocol.WORSE_MARGIN", -1.0)
    with pytest.raises(UsageError, match="worse than the old one on validation"):
        muscle(model_v1, model_v2, write_task(tmp_path), out=tmp_path / "out", config=MuscleConfig(**TINY))


def test_other_tokenizers_are_refused(model_v1: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5, letters="abcdefgh0123456789:")
    with pytest.raises(TokenizerMismatchError, match="different tokenizers"):
        muscle(model_v1, other, write_task(tmp_path), out=tmp_path / "out", config=MuscleConfig(**TINY))


def test_a_full_model_gets_a_fresh_adapter(model_v2: Path) -> None:
    assert trainable_copy(load(model_v2), 4, 8, 0.0, 0).peft_config["default"].r == 4
