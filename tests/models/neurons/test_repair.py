from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.neurons.test_neurons import neox
from tests.models.tiny import tiny
from tests.models.toy_lm import Toy
from uphold.core.errors import EmptyError, ModelError, UsageError
from uphold.models.encode import Encoded
from uphold.models.load import load
from uphold.models.neurons.config import Failure, Guard, NeuronConfig
from uphold.models.neurons.guard import Drift, forced, read_guard
from uphold.models.neurons.neurons import read_anatomy
from uphold.models.neurons.repair import repair_failures
from uphold.models.patches.apply import apply
from uphold.models.patches.patch import value_hash

FREE = {"max_nll_rise": 100.0, "min_agreement": 0.0, "total_nll_rise": 100.0, "total_agreement": 0.0}


def failing(model: Any, count: int = 1, seed: int = 0, rank: int = 1, length: int = 10) -> list[Failure]:
    """Random prompts with the token of some rank as the right one."""
    generator, found = torch.Generator().manual_seed(seed), []
    for number in range(count):
        ids = torch.randint(4, 47, (1, length), generator=generator)
        with torch.no_grad():
            order = model(ids).logits[0, -1].argsort(descending=True).tolist()
        found.append(Failure(tuple(ids[0].tolist()), (order[rank],), name=f"failure {number}"))
    return found


def guard_rows(count: int = 6, seed: int = 9) -> tuple[Encoded, ...]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(4, 47, (count, 12), generator=generator).tolist()
    return tuple(Encoded(row[:1], row[1 : 5 + number]) for number, row in enumerate(rows))


@pytest.fixture
def state() -> Iterator[Any]:
    """Checks that a model is as it was at the end, bit for bit, with every module in its mode."""
    kept: list[tuple[Any, dict[str, torch.Tensor], list[bool]]] = []

    def watch(model: Any) -> Any:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        kept.append((model, weights, [module.training for module in model.modules()]))
        return model

    yield watch
    for model, weights, modes in kept:
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma3", "neox"])
def test_the_patch_makes_the_right_token_and_comes_off_again(kind: str, state: Any) -> None:
    model = state(neox() if kind == "neox" else tiny(kind))
    failures = failing(model, 3)
    patch, report = repair_failures(model, failures, NeuronConfig(mode="add"))
    assert patch is not None
    assert report.count("repaired") >= 1
    untouched = [name for name in model.state_dict() if name not in patch.names]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with apply(model, patch):
        for one in report.failures:
            said = forced(read_anatomy(model), one.failure.prompt, one.failure.target)
            assert said == one.after
            assert said.all_right or one.status not in ("repaired", "right")
        after = dict(model.state_dict())
        assert all(torch.equal(after[name], before[name]) for name in untouched)
        # Only the neurons of the edit list differ: columns, or rows of a Conv1D.
        for name in patch.names:
            changed = (after[name] != before[name]).any(dim=1 if kind == "gpt2" else 0).nonzero()[:, 0].tolist()
            layer = next(down.layer for down in read_anatomy(model).downs if down.parameter == name)
            assert sorted(changed) == sorted(
                {j for one in report.failures for where, j in one.neurons if where == layer}
            )


def test_applying_the_patch_gives_the_very_weights_that_were_kept() -> None:
    model = tiny("llama")
    failures = failing(model, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        patch, _ = repair_failures(model, failures, NeuronConfig(mode="add"), keep=True)
        kept = {name: value.clone() for name, value in model.state_dict().items()}
    finally:
        model.load_state_dict(before)
    assert patch is not None
    assert any(not torch.equal(kept[name], before[name]) for name in patch.names)
    with apply(model, patch):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_the_manifest_says_what_was_done(model_v1: Path) -> None:
    loaded = load(model_v1)
    failures = failing(loaded.model, 2)
    patch, report = repair_failures(loaded, failures, guard=Guard(guard_rows()), config=NeuronConfig(**FREE))
    assert patch is not None
    manifest = patch.manifest
    assert (manifest.method, manifest.paper, manifest.source) == ("mint", "arXiv:2312.05356", str(model_v1))
    assert manifest.weights == loaded.fingerprint["weights"]
    weights = dict(loaded.model.named_parameters())
    assert manifest.pristine == {name: value_hash(weights[name]) for name in patch.names}
    first = manifest.facts["edits"][0]
    one = report.failures[first["failure"]]
    assert (first["layer"], first["neuron"]) in one.neurons
    assert (first["wrong"], first["target"]) == (one.tokens[0].wrong, one.failure.target[0])
    assert first["before"] == value_hash(weights[first["tensor"]][:, first["neuron"]])
    assert first["strength"] == one.tokens[0].strength
    named = {entry["name"]: entry for entry in manifest.facts["failures"]}
    assert named[one.failure.name]["prompt"] == list(one.failure.prompt)
    assert manifest.figures["before"]["failures"] == 2
    assert manifest.figures["after"]["failures"] == sum(not one.after.all_right for one in report.failures)
    assert report.drift is not None
    assert manifest.figures["after"]["guard_nll"] == report.drift.nll_after


def test_what_is_right_is_left_alone(state: Any) -> None:
    model = state(tiny("llama"))
    patch, report = repair_failures(model, failing(model, rank=0))
    assert patch is None
    assert (report.failures[0].status, report.failures[0].tokens) == ("right", ())
    assert report.failures[0].before == report.failures[0].after


def test_all_tokens_of_a_target_are_repaired_in_turn(state: Any) -> None:
    model = state(tiny("gpt2"))
    done = 0
    for seed in range(2):
        [failure] = failing(model, seed=seed)
        for _ in range(2):
            with torch.no_grad():
                order = model(torch.tensor([[*failure.prompt, *failure.target]])).logits[0, -1].argsort(descending=True)
            failure = Failure(failure.prompt, (*failure.target, int(order[1])))
        patch, report = repair_failures(model, [failure], NeuronConfig(mode="add"))
        [one] = report.failures
        assert (patch is None) == (one.status == "failed")
        if one.status == "repaired":
            done += 1
            assert one.after.predicted == failure.target
            assert not one.before.all_right
            assert len(one.tokens) >= 2
            assert {token.target for token in one.tokens} <= set(failure.target)
    assert done >= 1


def test_a_failure_that_cannot_be_repaired_leaves_nothing(state: Any) -> None:
    model = state(tiny("llama"))
    [failure] = failing(model)
    wanted = Failure(failure.prompt, (failure.target[0], 20))
    easy = NeuronConfig(strength=0.001, max_edits=3, max_neurons=1)
    patch, report = repair_failures(model, [wanted], easy)
    assert patch is None
    [one] = report.failures
    assert (one.status, one.neurons) == ("failed", ())
    assert "token 1: " in one.reason


@pytest.mark.parametrize("where", ["gradients", "simulate", "logits"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_the_model_alone(
    where: str, error: type[BaseException], state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uphold.models.neurons.context import Context

    model = state(tiny("llama"))
    failures, calls = failing(model, 3), []
    real = getattr(Context, where)

    def breaks(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error("in the middle")
        return real(self, *args)

    monkeypatch.setattr(Context, where, breaks)
    with pytest.raises(error):
        repair_failures(model, failures, NeuronConfig(mode="add"))


def test_training_mode_is_put_off_and_back(state: Any) -> None:
    model = deepcopy(tiny("gpt2", resid_pdrop=0.5))
    failures = failing(model, 2)
    _, expected = repair_failures(model, failures)
    model.train()
    model.transformer.h[0].eval()
    state(model)
    _, report = repair_failures(model, failures)
    assert report == expected


def test_the_guard_undoes_what_costs_too_much(state: Any) -> None:
    model = state(tiny("llama"))
    failures = failing(model, 3)
    # What the model says where the failures are: every repair changes that.
    guard = Guard((*guard_rows(), *(Encoded(list(one.prompt), list(one.target)) for one in failures)))
    strict = NeuronConfig(mode="add", max_nll_rise=100, min_agreement=1, total_nll_rise=100, total_agreement=0)
    patch, report = repair_failures(model, failures, strict, guard=guard)
    assert patch is None
    assert [one.status for one in report.failures] == ["vetoed"] * 3
    assert all("guard set" in one.reason and one.drift is not None for one in report.failures)
    assert report.drift == Drift(report.drift.tokens, 1.0, report.drift.nll_before, report.drift.nll_before)  # type: ignore[union-attr]
    patch, report = repair_failures(model, failures, NeuronConfig(mode="add", **FREE), guard=guard)
    assert patch is not None
    assert report.count("repaired") >= 2
    assert report.drift is not None
    with apply(model, patch):
        after = read_guard(read_anatomy(model), guard)
    assert after is not None
    assert after.nll == pytest.approx(report.drift.nll_after)


def test_drift_is_measured_against_the_model_before_each_repair_and_before_all() -> None:
    model = tiny("llama")
    failures, guard = failing(model, 3), Guard(guard_rows())
    _, report = repair_failures(model, failures, NeuronConfig(mode="add", **FREE), guard=guard)
    made = [one.drift for one in report.failures if one.drift is not None]
    assert len(made) >= 2
    assert all(earlier.nll_after == later.nll_before for earlier, later in pairwise(made))
    assert report.drift is not None
    assert (report.drift.nll_before, report.drift.nll_after) == (made[0].nll_before, made[-1].nll_after)


def test_too_much_drift_in_all_stops_the_series(state: Any) -> None:
    model = state(tiny("llama"))
    failures, guard = failing(model, 5), Guard(guard_rows())
    config = NeuronConfig(mode="add", max_nll_rise=100, min_agreement=0, total_nll_rise=100, total_agreement=0.999)
    _, report = repair_failures(model, failures, config, guard=guard)
    statuses = [one.status for one in report.failures]
    first = statuses.index("vetoed")
    assert set(statuses[first + 1 :]) <= {"stopped"}
    assert "with all repairs only" in report.failures[first].reason
    assert report.failures[-1].reason == report.failures[first].reason


def test_a_check_undoes_what_it_does_not_pass(state: Any) -> None:
    model = state(tiny("llama"))
    failures, answers = failing(model, 3), iter([True, False, True, False, True, True])
    asked: list[Any] = []

    def check(given: Any) -> bool:
        asked.append(given)
        return next(answers)

    _, report = repair_failures(model, failures, NeuronConfig(mode="add"), guard=Guard(check=check))
    statuses = [one.status for one in report.failures]
    assert statuses[0] == "vetoed"
    assert "check does not pass" in report.failures[0].reason
    assert report.drift is None
    assert all(one is model for one in asked)
    with pytest.raises(UsageError, match="before any repair"):
        repair_failures(model, failures, guard=Guard(check=lambda _: False))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_repair_that_makes_another_failure_wrong_is_undone(rank: int, state: Any) -> None:
    model = state(tiny("llama"))
    # One prompt cannot be continued in two ways.
    first, other = (failing(model, rank=one)[0] for one in (rank, 2))
    config = NeuronConfig(mode="add")
    alone, _ = repair_failures(model, [first], config)
    patch, report = repair_failures(model, [first, other], config)
    assert [one.status for one in report.failures] == ["right" if rank == 0 else "repaired", "vetoed"]
    assert report.failures[1].reason == "it makes failure 0 wrong"
    assert report.failures[0].after.all_right
    assert (patch is None) == (alone is None) == (rank == 0)
    if patch is not None and alone is not None:
        assert patch.names == alone.names
        assert all(torch.equal(patch.deltas[name].tensor(), alone.deltas[name].tensor()) for name in patch.names)
    assert repair_failures(model, [other], config)[1].count("repaired") == 1


def test_paraphrases_are_reported(state: Any) -> None:
    model = state(tiny("llama"))
    [failure] = failing(model)
    near, far = failure.prompt[1:], tuple(reversed(failure.prompt))
    asked = Failure(failure.prompt, failure.target, (failure.prompt, near, far))
    _, report = repair_failures(model, [asked], NeuronConfig(mode="add"))
    [one] = report.failures
    assert one.status == "repaired"
    others = one.paraphrases
    assert others is not None
    assert others.count == 3
    assert others.right_after >= 1 > others.right_before
    # The first is the very prompt.
    assert 0 <= others.rank_after < others.rank_before
    assert others.gap_before >= one.before.gap / 3 > 0
    assert report.to_dict()["failures"][0]["paraphrases"]["count"] == 3


def test_ids_beyond_the_tokenizer_are_never_predicted(state: Any) -> None:
    model = state(tiny("llama"))
    with torch.no_grad():
        row = model(torch.tensor([[5, 9, 17]])).logits[0, -1]
    vocabulary = 40
    target = int(row[:vocabulary].argmax())
    _, report = repair_failures(model, [Failure((5, 9, 17), (target,))], vocabulary=vocabulary)
    assert report.failures[0].status == "right"
    with pytest.raises(UsageError, match="from 0 to 39, found -1"):
        repair_failures(model, [Failure((5, -1), (3,))], vocabulary=vocabulary)
    with pytest.raises(UsageError, match="from 0 to 39, found 41"):
        repair_failures(model, [Failure((5, 41), (3,))], vocabulary=vocabulary)


def test_tied_embeddings_stay_as_they_are(state: Any) -> None:
    model = state(tiny("llama", tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    patch, report = repair_failures(model, failing(model, 2), NeuronConfig(mode="add"))
    assert report.count("repaired")
    assert patch is not None
    assert all("down_proj" in name for name in patch.names)


def test_a_bfloat16_model_is_patched_in_its_own_dtype(state: Any) -> None:
    model = state(deepcopy(tiny("llama")).bfloat16())
    failures = failing(model, 3)
    patch, report = repair_failures(model, failures, NeuronConfig(mode="add"))
    assert patch is not None
    with apply(model, patch):
        assert model.dtype == torch.bfloat16
        for one in report.failures:
            if one.status == "repaired":
                assert forced(read_anatomy(model), one.failure.prompt, one.failure.target) == one.after


@pytest.mark.parametrize("config", [NeuronConfig(locate="random", seed=3), NeuronConfig(locate="activation")])
def test_controls_and_equal_calls_give_equal_reports(config: NeuronConfig, state: Any) -> None:
    model = state(tiny("llama"))
    failures = failing(model, 2)
    assert repair_failures(model, failures, config)[1] == repair_failures(model, failures, config)[1]


@pytest.mark.parametrize("changes", [{"direction": "basis"}, {"divide_by_gain": True}, {"layers": "all"}])
def test_variants_run(changes: dict[str, Any], state: Any) -> None:
    model = state(tiny("llama"))
    _, report = repair_failures(model, failing(model, 2), NeuronConfig(mode="add", **changes))
    assert {one.status for one in report.failures} <= {"repaired", "failed"}


def test_a_plain_torch_model_is_repaired(state: Any) -> None:
    toy = state(Toy(neurons=16))
    order = toy(torch.tensor([[3, 5]]))[0, -1].argsort(descending=True).tolist()
    patch, report = repair_failures(toy, [Failure((3, 5), (order[1],))], NeuronConfig(mode="add"), head="head")
    assert report.failures[0].status == "repaired"
    assert patch is not None
    with apply(toy, patch):
        assert int(toy(torch.tensor([[3, 5]]))[0, -1].argmax()) == order[1]
    with pytest.raises(ModelError, match="norm="):
        repair_failures(toy, [Failure((3, 5), (1,))], NeuronConfig(divide_by_gain=True), head="head")


def test_nothing_to_do_and_wrong_options_are_refused() -> None:
    with pytest.raises(EmptyError, match="no failures"):
        repair_failures(tiny("llama"), [])
    with pytest.raises(UsageError, match="at least one token"):
        Failure((), (1,))
    with pytest.raises(UsageError, match="guards nothing"):
        Guard()
    for wrong in (
        {"strength": -1},
        {"strength": float("inf")},
        {"max_neurons": 0},
        {"max_neurons": 4, "max_edits": 3},
        {"pool": 0},
        {"max_nll_rise": float("nan")},
        {"total_agreement": 2},
        {"mode": "mixed"},
        {"layers": "most"},
    ):
        with pytest.raises(UsageError):
            NeuronConfig(**wrong)  # type: ignore[arg-type]
