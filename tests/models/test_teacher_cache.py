from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from uphold.core.errors import CorruptError
from uphold.models.adapter import fresh_adapter
from uphold.models.divergence import Divergence, ForwardKL, HalfSquaredLogits, JensenShannon, ReverseKL
from uphold.models.encode import Encoded, collate
from uphold.models.load import load
from uphold.models.objective import Distillation, FrozenTeacher
from uphold.models.rules import Term, Tokens, Weights
from uphold.models.targets import Top, forward_kl, kept_forward_kl, spread
from uphold.models.teacher_cache import CachedTeacher, CacheSpec, KeptTop, cache_key, row_names, write_cache
from uphold.models.train import trained_tokens
from uphold.repair.muscle import MASKS, MuscleRule

ROWS = [
    Encoded([5, 6, 7], [8, 9], 0),
    Encoded([10, 11], [12], 1),
    Encoded([13, 14, 15, 16], [17, 18], 2),
    Encoded([4, 4], [4, 5, 6, 7, 8], 3),
]
VOCABULARY = 47
TWO = (1.0, 2.0)


@dataclass(frozen=True)
class Only:
    """One divergence from the old teacher, or from a mixture of both."""

    divergence: Divergence
    mixed: bool = False
    mix: Any = "probabilities"
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        shares = torch.stack([tokens.none + 0.25, tokens.none + 0.75], dim=1)
        return Weights((Term("d", self.divergence, shares if self.mixed else 0, tokens.none + 1, self.mix),))


@pytest.fixture(scope="module")
def trio(model_v1: Path, model_v2: Path) -> tuple[Any, Any, Any]:
    """Old and new teacher, and a student that is neither."""
    old, new = load(model_v1), load(model_v2)
    student = fresh_adapter(new, 4, 8, 0.0, seed=0)
    with torch.no_grad():
        for name, value in student.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    assert old.model.config.vocab_size == VOCABULARY
    return FrozenTeacher(old.model), FrozenTeacher(new.model), student


def cached(teacher: FrozenTeacher, folder: Path, **changes: Any) -> CachedTeacher:
    spec = replace(CacheSpec(0, TWO, "all", 2), **changes)
    return CachedTeacher(teacher, write_cache(teacher, ROWS, spec, folder))


def loss_and_gradient(student: Any, objective: Distillation) -> tuple[float, dict[str, torch.Tensor], Any]:
    student.zero_grad()
    found = objective(student, collate([ROWS[2], ROWS[0], ROWS[3]], 3))
    found.total.backward()
    gradients = {name: value.grad.clone() for name, value in student.named_parameters() if value.requires_grad}
    return float(found.total.detach()), gradients, found.logs


@pytest.mark.parametrize("top", [0, VOCABULARY, 1000])
@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_what_keeps_everything_gives_the_same_loss_and_gradient(
    trio: tuple[Any, Any, Any], tmp_path: Path, top: int, tokens: Any
) -> None:
    old, new, student = trio
    kept = tuple(cached(one, tmp_path / str(i), top=top, tokens=tokens) for i, one in enumerate((old, new)))
    rules: list[Any] = [MuscleRule(mask) for mask in MASKS]
    rules += [Only(ReverseKL(2.0)), Only(JensenShannon()), Only(ForwardKL(2.0), mixed=True)]
    for rule in rules:
        plain = loss_and_gradient(student, Distillation(rule, (old, new), tokens))
        ours = Distillation(rule, kept, tokens)
        found = loss_and_gradient(student, ours)
        assert ours.teachers == kept
        assert found[0] == pytest.approx(plain[0], rel=1e-5, abs=1e-5)
        assert all(torch.allclose(found[1][name], plain[1][name], atol=1e-5) for name in plain[1])
        assert found[2].keys() == plain[2].keys()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_collapsing_is_never_too_large_and_its_gradient_is_within_the_bound(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(30, 40, generator=generator) * 4 for _ in range(2))
    for width in (1, 5, 39):
        logprobs = (teacher / temperature).log_softmax(dim=-1)
        top = logprobs.topk(width, dim=-1)
        rest = logprobs.scatter(1, top.indices, -torch.inf).logsumexp(dim=-1)
        kept = Top(top.indices, top.values, rest)
        divergence = ForwardKL(temperature)
        whole, part = forward_kl(student, teacher, divergence), kept_forward_kl(student, kept, divergence)
        own = (student / temperature).log_softmax(dim=-1)
        hidden = rest.exp() * inside(logprobs, own, top.indices)
        assert torch.allclose(whole.value - part.value, hidden, atol=1e-4)
        assert bool((part.value <= whole.value + 1e-5).all())
        off = (whole.gradient - part.gradient).abs().sum(dim=-1)
        assert bool((off <= 2 * rest.exp() / temperature + 1e-5).all())
        for other in (ReverseKL(temperature), JensenShannon(temperature)):
            made = other(student, spread(kept, own))
            assert bool((made.value <= other(student, logprobs).value + 1e-5).all())


def inside(teacher: torch.Tensor, student: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """KL(p / P || q / Q) over what is not among the top tokens."""
    mine, theirs = (one.scatter(1, top, -torch.inf).log_softmax(dim=-1) for one in (student, teacher))
    return (theirs.exp() * (theirs - mine)).nan_to_num(0).sum(dim=-1)


def test_a_collapsed_gradient_is_the_derivative_of_the_collapsed_value() -> None:
    student = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    logprobs = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).double().log_softmax(dim=-1)
    top = logprobs.topk(3, dim=-1)
    rest = 1 - top.values.exp().sum(dim=-1)
    own = (student / 2).softmax(dim=-1)
    at = own.gather(1, top.indices)
    value = (top.values.exp() * (top.values - at.log())).sum(dim=-1) + rest * (rest / (1 - at.sum(dim=-1))).log()
    value.sum().backward()
    found = kept_forward_kl(student.detach(), Top(top.indices, top.values, rest.log()), ForwardKL(2.0))
    assert torch.allclose(found.value, value.detach())
    assert student.grad is not None
    assert torch.allclose(found.gradient, student.grad)


def test_a_student_that_is_its_teacher_is_left_alone(trio: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """The rest keeps the student's shape: nothing pulls it anywhere."""
    _, new, _ = trio
    student = fresh_adapter(load(Path(new.model.name_or_path)), 4, 8, 0.0, seed=0)
    kept = cached(new, tmp_path / "c", top=3)
    total, gradients, _ = loss_and_gradient(student, Distillation(Only(ForwardKL(2.0)), (kept,), "all"))
    assert total == pytest.approx(0, abs=1e-4)
    assert all(float(value.abs().max()) < 1e-5 for value in gradients.values())


def test_gold_is_exact_and_the_tail_is_told(trio: tuple[Any, Any, Any], tmp_path: Path) -> None:
    old, _, _ = trio
    teacher = cached(old, tmp_path / "c", top=4)
    batch = collate(ROWS, 2)
    trained = trained_tokens(batch, "all")
    kept = teacher.logits(batch, trained)
    assert isinstance(kept, KeptTop)
    with torch.no_grad():
        whole = old.model(batch.input_ids, attention_mask=batch.attention_mask).logits
    logits = whole[trained.sequence, trained.position]
    logprobs = logits.log_softmax(dim=-1)
    assert torch.allclose(kept.gold.logprob, logprobs.gather(1, trained.targets[:, None])[:, 0], atol=1e-5)
    assert torch.equal(kept.gold.right, logits.argmax(dim=-1) == trained.targets)
    for temperature in TWO:
        tempered = (logits / temperature).softmax(dim=-1)
        rest = 1 - tempered.gather(1, kept.ids).sum(dim=-1)
        assert torch.allclose(kept.rests[temperature].exp(), rest, atol=1e-5)
        assert teacher.tail[temperature].mean == pytest.approx(float(rest.mean()), abs=1e-5)
        assert teacher.tail[temperature].largest == pytest.approx(float(rest.max()), abs=1e-5)
        assert teacher.tail[temperature].gradient_bound(temperature) == pytest.approx(
            2 * float(rest.max()) / temperature, abs=1e-5
        )


@pytest.mark.parametrize(
    "rule",
    [Only(HalfSquaredLogits()), Only(ForwardKL(7.0)), Only(ForwardKL(), mixed=True, mix="logits")],
    ids=["logits", "temperature", "mixed logits"],
)
def test_what_a_cache_does_not_know_is_asked_of_the_teacher(
    trio: tuple[Any, Any, Any], tmp_path: Path, rule: Any
) -> None:
    old, new, student = trio
    kept = tuple(cached(one, tmp_path / str(i), top=4) for i, one in enumerate((old, new)))
    ours = Distillation(rule, kept, "all")
    assert loss_and_gradient(student, ours)[0] == loss_and_gradient(student, Distillation(rule, (old, new), "all"))[0]
    assert ours.teachers == (old, new)


def test_hidden_states_serve_every_divergence(trio: tuple[Any, Any, Any], tmp_path: Path) -> None:
    old, new, student = trio
    kept = tuple(cached(one, tmp_path / str(i)) for i, one in enumerate((old, new)))
    for rule in (Only(HalfSquaredLogits()), Only(ForwardKL(7.0), mixed=True, mix="logits")):
        plain = loss_and_gradient(student, Distillation(rule, (old, new), "all"))[0]
        assert loss_and_gradient(student, Distillation(rule, kept, "all"))[0] == pytest.approx(plain, rel=1e-5)


def test_rows_that_were_not_kept_are_read(trio: tuple[Any, Any, Any], tmp_path: Path) -> None:
    old, _, _ = trio
    teacher = cached(old, tmp_path / "c", top=4)
    batch = collate([ROWS[0], Encoded([20, 21], [22])])
    assert len(teacher.logits(batch, trained_tokens(batch, "all"))) == 6
    assert not isinstance(teacher.logits(batch, trained_tokens(batch, "all")), KeptTop)
    # The same tokens with only the answer trained are other predictions.
    whole = collate([ROWS[0]])
    assert not isinstance(teacher.logits(whole, trained_tokens(whole, "answer")), KeptTop)


def test_the_name_follows_teacher_rows_and_form() -> None:
    names = {
        cache_key("a", ROWS, CacheSpec()),
        cache_key("b", ROWS, CacheSpec()),
        cache_key("a", ROWS[:3], CacheSpec()),
        cache_key("a", ROWS, CacheSpec(top=4)),
        cache_key("a", ROWS, CacheSpec(top=4, temperatures=(2.0,))),
        cache_key("a", ROWS, CacheSpec(tokens="answer")),
    }
    assert len(names) == 6
    assert cache_key("a", ROWS, CacheSpec(temperatures=(3.0,), rows_per_pass=1)) in names


def test_padding_does_not_change_a_rows_name() -> None:
    for tokens in ("all", "answer"):
        names = [
            row_names(batch, trained_tokens(batch, tokens))  # type: ignore[arg-type]
            for batch in (collate(ROWS), collate(ROWS, 5))
        ]
        assert names[0] == names[1]
        assert len(set(names[0])) == len(ROWS)


def test_a_killed_writer_leaves_nothing_that_is_read(model_v1: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.models.test_teacher_cache import ROWS\n"
        "from uphold.models import teacher_cache as t\n"
        "from uphold.models.load import load\n"
        "t.SHARD_BYTES = 1\n"
        "wait = lambda what, done, total, note='': time.sleep(0.5)\n"
        "t.write_cache(t.FrozenTeacher(load(sys.argv[1]).model), ROWS, t.CacheSpec(rows_per_pass=1),\n"
        "    Path(sys.argv[2]), progress=wait)\n"
    )
    folder, root = tmp_path / "caches" / "c", str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script), str(model_v1), str(folder)], cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    deadline = time.monotonic() + 120
    while not list(folder.parent.glob(".c.*/shard-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not folder.exists()
    assert list(folder.parent.iterdir())
    write_cache(FrozenTeacher(load(model_v1).model), ROWS, CacheSpec(), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["c"]


def test_a_damaged_cache_is_named(trio: tuple[Any, Any, Any], tmp_path: Path) -> None:
    old, _, _ = trio
    teacher = cached(old, tmp_path / "c")
    (tmp_path / "c" / "shard-00000.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptError, match=r"cache .* cannot be read"):
        CachedTeacher(teacher.teacher, tmp_path / "c")
