from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from uphold.core.errors import EmptyError, ModelError, UsageError
from uphold.models.fingerprint import weights_hash
from uphold.models.patches.apply import apply
from uphold.models.patches.make import make, matching
from uphold.models.patches.source import open_weights, weights_path


def state(seed: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(4, 5, generator=generator), "b.bias": torch.randn(3, generator=generator), **more}


def test_what_changed_is_what_is_in_the_patch() -> None:
    before, after = state(0), state(1)
    after["b.bias"] = before["b.bias"].clone()
    patch = make(before, after)
    assert patch.names == ("a.weight",)
    assert torch.equal(patch.deltas["a.weight"].tensor(), after["a.weight"] - before["a.weight"])
    with apply(before, patch):
        assert torch.allclose(before["a.weight"], after["a.weight"], atol=1e-6)


@given(seed=st.integers(0, 1000), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_narrow_weights_become_exactly_what_they_are_after(seed: int, dtype: torch.dtype) -> None:
    before = {name: tensor.to(dtype) for name, tensor in state(seed).items()}
    after = {name: tensor.to(dtype) for name, tensor in state(seed + 1).items()}
    patch = make(before, after)
    apply(before, patch)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name])


def test_small_changes_are_left_out() -> None:
    before, after = {"a": torch.zeros(10)}, {"a": torch.arange(10.0) - 5}
    kept = make(before, after, keep=0.3).deltas["a"]
    assert kept.tensor().tolist() == [-5, -4, 0, 0, 0, 0, 0, 0, 0, 4] or kept.count == 3
    assert make(before, after, threshold=3).deltas["a"].tensor().tolist() == [-5, -4, 0, 0, 0, 0, 0, 0, 0, 4]
    assert make(before, after, keep=0.1).deltas["a"].tensor().tolist() == [-5] + [0] * 9
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(UsageError, match="share"):
            make(before, after, keep=share)
    with pytest.raises(UsageError, match="threshold"):
        make(before, after, threshold=float("nan"))


@given(keep=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_the_kept_are_the_largest(keep: float, seed: int) -> None:
    change = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    delta = make({"a": torch.zeros(50)}, {"a": change}, keep=keep).deltas["a"].tensor()
    kept = delta != 0
    assert torch.equal(delta[kept], change[kept])
    assert int(kept.sum()) == -(-keep * 50 // 1) or abs(int(kept.sum()) - keep * 50) <= 1
    if not bool(kept.all()):
        assert float(change[kept].abs().min()) >= float(change[~kept].abs().max())


def test_integers_and_statistics_are_replaced() -> None:
    before = state(0, **{"bn.running_var": torch.ones(2), "bn.num_batches_tracked": torch.tensor(1)})
    after = state(0, **{"bn.running_var": torch.full((2,), 0.1), "bn.num_batches_tracked": torch.tensor(9)})
    patch = make(before, after)
    assert sorted(patch.replacements) == ["bn.num_batches_tracked", "bn.running_var"]
    with apply(before, patch, 0.5):
        assert before["bn.running_var"].tolist() == pytest.approx([0.1, 0.1])
        assert int(before["bn.num_batches_tracked"]) == 9
    assert int(before["bn.num_batches_tracked"]) == 1


def test_layers_are_chosen_by_name_glob_and_regular_expression() -> None:
    names = ["l.0.w", "l.1.w", "l.10.w", "head"]
    assert matching(names, ["l.1.w", "head"]) == ["l.1.w", "head"]
    assert matching(names, ["l.1*"]) == ["l.1.w", "l.10.w"]
    assert matching(names, [r"re:l\.\d\.w"]) == ["l.0.w", "l.1.w"]
    assert matching(names, []) == names
    with pytest.raises(UsageError, match="did you mean 'head'"):
        matching(names, ["heat"])
    with pytest.raises(UsageError, match="no regular expression"):
        matching(names, ["re:("])


def test_two_architectures_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'c' is in the other|'c' is in one"):
        make(state(0), state(1, c=torch.ones(1)))
    with pytest.raises(UsageError, match="has shape"):
        make({"a": torch.ones(2)}, {"a": torch.ones(3)})
    with pytest.raises(UsageError, match="expected one kind"):
        make({"a": torch.ones(2)}, {"a": torch.ones(2).long()})
    with pytest.raises(UsageError, match="not finite"):
        make({"a": torch.ones(2)}, {"a": torch.full((2,), float("inf"))})
    assert make(state(0), state(1, c=torch.ones(1)), names=["a.weight"]).names == ("a.weight",)
    with pytest.raises(EmptyError, match="none differs"):
        make(state(0), state(0))
    for wrong in (3, {}, {"a": 1}, None):
        with pytest.raises(UsageError, match="expected a model reference"):
            make(wrong, state(0))


def test_the_manifest_says_where_it_comes_from(model_v1: Path, model_v2: Path) -> None:
    seen: list[Any] = []
    patch = make(
        model_v1,
        model_v2,
        quantiser="int8",
        keep=0.2,
        figures={"before": {"accuracy": 0.5}},
        facts={"why": "test"},
        progress=lambda *step: seen.append(step),
    )
    manifest = patch.manifest
    assert manifest.weights == weights_hash(model_v1)
    assert manifest.facts["after"]["weights"] == weights_hash(model_v2)
    assert manifest.facts["why"] == "test"
    assert (manifest.source, manifest.quantiser, manifest.method) == (str(model_v1), "int8", "difference")
    assert {"uphold", "torch"} <= manifest.versions.keys()
    assert manifest.pristine.keys() == set(patch.names)
    assert seen[-1][1] == seen[-1][2]


def test_a_folder_and_its_state_dict_have_one_hash(model_v1: Path) -> None:
    with open_weights(model_v1) as folder, open_weights({n: folder.tensor(n) for n in folder.names}) as memory:
        assert folder.hash == memory.hash == weights_hash(model_v1)


def test_tied_tensors_are_in_a_patch_once() -> None:
    shared, other = torch.zeros(3), torch.ones(3)
    patch = make({"emb": shared, "head": shared}, {"emb": other, "head": other})
    assert patch.names == ("emb",)


def test_files_and_references(tmp_path: Path) -> None:
    save_file(state(0), tmp_path / "a.safetensors")
    torch.save(state(1), tmp_path / "b.pt")
    assert make(tmp_path / "a.safetensors", str(tmp_path / "b.pt")).names == ("a.weight", "b.bias")
    assert weights_path("embedded:v1").is_dir()
    for wrong in ("embedded:smollm2", tmp_path / "none", ""):
        with pytest.raises((UsageError, ModelError)):
            weights_path(wrong)
