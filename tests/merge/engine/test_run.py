from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.merge.engine.checkpoints import decoder, linear, near, save_model
from uphold.core import registry
from uphold.core.errors import ModelError, StorageError, UpholdError, UsageError
from uphold.merge import estimate, merge
from uphold.merge.engine import execute as executing
from uphold.merge.engine.recipe import load_recipe
from uphold.merge.engine.run import prepared
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings
from uphold.models.checkpoint import open_checkpoint
from uphold.models.fingerprint import weights_hash

BASE = decoder(0)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    found = {"base": BASE, "a": near(BASE, 1), "b": near(BASE, 2)}
    return {name: str(save_model(tmp_path / name, tensors)) for name, tensors in found.items()}


def tensors(folder: Path | str) -> dict[str, torch.Tensor]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.infos}


def dare(models: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "dare_linear",
        "base_model": models["base"],
        "models": [{"model": models["a"]}, {"model": models["b"]}],
        "parameters": {"weight": 0.5, "density": 0.5},
        **more,
    }


# ---- values ------------------------------------------------------------------------------------------------------


def test_a_weighted_mean_is_one(models: dict[str, str], tmp_path: Path) -> None:
    result = merge(linear([models["a"], models["b"]], [1, 3]), out=tmp_path / "out", threads=1)
    a, b = tensors(models["a"]), tensors(models["b"])
    for name, value in tensors(tmp_path / "out").items():
        torch.testing.assert_close(value, 0.25 * a[name] + 0.75 * b[name], rtol=0, atol=1e-6)
    assert result.weights == weights_hash(tmp_path / "out")
    assert not result.reused


def test_bf16_is_added_up_in_float32_and_cast_once(tmp_path: Path) -> None:
    values = [torch.tensor([[1.0]]), torch.tensor([[2**-8]]), torch.tensor([[2**-8]])]
    names = []
    for number, value in enumerate(values):
        content = {"w.weight": value.to(torch.bfloat16), "count": torch.tensor(number)}
        names.append(save_model(tmp_path / str(number), content))
    merge(linear(names, parameters={"normalize": False}), out=tmp_path / "out", threads=1)
    # Added up in bfloat16, each of the small values would be lost.
    found = tensors(tmp_path / "out")
    assert found["w.weight"].dtype == torch.bfloat16
    assert found["w.weight"].item() == 1 + 2**-7
    assert found["count"].item() == 0


def test_several_shards_on_both_sides(tmp_path: Path) -> None:
    a = save_model(tmp_path / "a", near(BASE, 1), shard_size=300)
    b = save_model(tmp_path / "b", near(BASE, 2), shard_size=500)
    merge(linear([a, b]), out=tmp_path / "out", shard_size=400, threads=1)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    merge(linear([a, b]), out=tmp_path / "one", threads=1)
    assert weights_hash(tmp_path / "out") == weights_hash(tmp_path / "one")
    assert (tmp_path / "one/model.safetensors").is_file()


def test_single_files_without_a_config(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    torch.save({"embed": shared, "head": shared, "w": torch.ones(2)}, tmp_path / "a.pt")
    twice = 2 * shared
    torch.save({"embed": twice, "head": twice, "w": torch.zeros(2)}, tmp_path / "b.pt")
    merge(linear([tmp_path / "a.pt", tmp_path / "b.pt"]), out=tmp_path / "out", threads=1)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.tensor("embed").tolist() == [0, 1.5, 3, 4.5]
    assert checkpoint.metadata["head"] == "embed"
    assert "head" not in checkpoint.infos
    assert not (tmp_path / "out/config.json").exists()


def test_a_frankenmerge_has_the_right_layers_and_says_how_many(models: dict[str, str], tmp_path: Path) -> None:
    config = {"num_hidden_layers": 3, "layer_types": ["one", "two", "three"]}
    for name in "ab":
        (Path(models[name]) / "config.json").write_text(json.dumps(config))
    parts = [
        {"sources": [{"model": models[name], "layer_range": layers}]} for name, layers in (("a", [0, 3]), ("b", [1, 3]))
    ]
    merge({"merge_method": "passthrough", "slices": parts}, out=tmp_path / "out", threads=1)
    found, a, b = tensors(tmp_path / "out"), tensors(models["a"]), tensors(models["b"])
    up = "model.layers.{}.mlp.up_proj.weight"
    assert found[up.format(2)].equal(a[up.format(2)])
    assert found[up.format(3)].equal(b[up.format(1)])
    assert found[up.format(4)].equal(b[up.format(2)])
    made = json.loads((tmp_path / "out/config.json").read_text())
    assert made == {"num_hidden_layers": 5, "layer_types": ["one", "two", "three", "two", "three"]}


# ---- the same result whatever happens ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("shared")
    made = {"base": BASE, "a": near(BASE, 1), "b": near(BASE, 2)}
    return {name: str(save_model(folder / name, value)) for name, value in made.items()}


@pytest.fixture(scope="module")
def expected(shared_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return merge(dare(shared_models), out=tmp_path_factory.mktemp("expected") / "out", threads=1).weights


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 2000), st.booleans())
def test_threads_chunks_shards_and_order_do_not_change_a_bit(
    shared_models: dict[str, str],
    expected: str,
    tmp_path_factory: pytest.TempPathFactory,
    threads: int,
    chunk: int,
    shard: int,
    reverse: bool,
) -> None:
    folder = tmp_path_factory.mktemp("varied")
    names = dict(shared_models)
    if reverse:
        for name, place in shared_models.items():
            content = dict(reversed(tensors(place).items()))
            names[name] = str(save_model(folder / name, content, shard_size=shard))
    with prepared(load_recipe(dare(names))) as (plan, _):
        from uphold.models.checkpoint_writer import CheckpointWriter

        kinds = {one.name: (one.dtype, one.shape) for one in plan.tensors}
        with CheckpointWriter(folder / "out", kinds, shard_size=shard) as writer:
            outcome = executing.execute(plan, writer, threads=threads, size=chunk)
    assert outcome.content_hash() == weights_hash(folder / "out") == expected


def test_another_seed_is_another_merge(models: dict[str, str], tmp_path: Path, expected: str) -> None:
    result = merge(dare(models, random_seed=1), out=tmp_path / "out", threads=1)
    assert result.weights != expected


# ---- finished, stopped, in the way -------------------------------------------------------------------------------


def test_a_repeated_call_finds_what_is_finished(models: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = linear([models["a"], models["b"]])
    first = merge(recipe, out=out, threads=1)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    again = merge(recipe, out=out, shard_size=200, threads=1)
    assert again.reused
    assert again.weights == first.weights
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    assert not merge({**recipe, "dtype": "float16"}, out=out, threads=1).reused


def test_changed_inputs_or_a_damaged_result_are_merged_again(models: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = linear([models["a"], models["b"]])
    first = merge(recipe, out=out, threads=1)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    again = merge(recipe, out=out, threads=1)
    assert (again.reused, again.weights) == (False, first.weights)
    shutil.rmtree(models["b"])
    save_model(Path(models["b"]), near(BASE, 5))
    assert merge(recipe, out=out, threads=1).weights != first.weights


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A merge method that raises on its third tensor what Ctrl-C would."""
    seen = threading.Event()

    class Stopping(MergeMethod):
        """Stops."""

        base = "optional"
        parameters = (Parameter("weight", per_model=True),)

        def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
            seen.set()
            raise KeyboardInterrupt

    registry.methods("merge")
    monkeypatch.setitem(registry._methods, ("merge", "stopping"), registry.Method("merge", "stopping", "", Stopping))
    return seen


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_leaves_nothing_half_written(
    models: dict[str, str], tmp_path: Path, stopping: threading.Event, threads: int
) -> None:
    out = tmp_path / "there" / "out"
    with pytest.raises(KeyboardInterrupt):
        merge({**linear([models["a"], models["b"]]), "merge_method": "stopping"}, out=out, threads=threads)
    assert stopping.is_set()
    assert list(out.parent.iterdir()) == []
    finished = merge(linear([models["a"], models["b"]]), out=out, threads=1)
    with pytest.raises(KeyboardInterrupt):
        merge({**linear([models["a"], models["b"]]), "merge_method": "stopping"}, out=out, threads=threads)
    assert weights_hash(out) == finished.weights
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_torchs_number_of_threads_is_given_back(models: dict[str, str], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    merge(linear([models["a"], models["b"]]), out=tmp_path / "out", threads=2)
    assert torch.get_num_threads() == before


def test_a_required_parameter_whose_filters_leave_a_tensor_out_is_asked_for(
    models: dict[str, str], tmp_path: Path
) -> None:
    recipe = linear([models["a"], models["b"]])
    recipe["models"][0]["parameters"] = {"weight": [{"filter": "self_attn", "value": 1}]}
    with pytest.raises(UsageError, match="none of its filters fits there; add '- value:"):
        merge(recipe, out=tmp_path / "out")


def test_a_folder_that_is_in_use_is_not_replaced(models: dict[str, str], tmp_path: Path) -> None:
    recipe = linear([models["a"], models["b"]])
    with pytest.raises(StorageError, match="which is to be merged"):
        merge(recipe, out=models["a"])
    with pytest.raises(StorageError, match="lies inside '"):
        merge(recipe, out=Path(models["a"]) / "merged")
    with pytest.raises(StorageError, match="which is to be merged"):
        merge(recipe, out=tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(StorageError, match="is not empty and holds no merge"):
        merge(recipe, out=tmp_path / "mine")
    with pytest.raises(StorageError, match="is a file"):
        merge(recipe, out=tmp_path / "mine/notes.txt")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"


def test_a_merge_may_be_merged_on_and_a_link_to_an_input_is_seen(models: dict[str, str], tmp_path: Path) -> None:
    merge(linear([models["a"], models["b"]]), out=tmp_path / "one", threads=1)
    merge(linear([models["a"], tmp_path / "one"]), out=tmp_path / "two", threads=1)
    (tmp_path / "link").symlink_to(models["a"])
    with pytest.raises(StorageError, match="which is to be merged"):
        merge(linear([models["a"]]), out=tmp_path / "link")


# ---- what stands beside the weights ------------------------------------------------------------------------------


def test_transformers_loads_the_result(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    from uphold.models.load import load

    out = tmp_path / "out"
    recipe = linear([model_v1, model_v2], name="Half and half", dtype="bfloat16")
    result = merge(recipe, out=out, threads=1)
    loaded = load(str(out))
    assert loaded.fingerprint["weights"] == result.weights
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (model_v1 / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    facts = json.loads((out / "uphold-merge.json").read_text())
    assert facts["weights"] == weights_hash(out)
    assert [one["weights"] for one in facts["inputs"]] == [weights_hash(model_v1), weights_hash(model_v2)]
    assert facts["recipe"]["merge_method"] == "linear"
    assert facts["seed"] == 0
    assert load_recipe(out / "recipe.yaml") == load_recipe(recipe)
    assert any("is far from" in text for text in result.warnings)
    _, header, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "uphold", "linear"],
    }
    assert "# Half and half" in text
    assert "merge_method: linear" in text


def test_a_chat_template_of_ones_own(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    merge(linear([model_v1, model_v2], chat_template=template), out=tmp_path / "own", threads=1)
    assert (tmp_path / "own/chat_template.jinja").read_text() == template
    merge(linear([model_v1, model_v2], chat_template="chatml"), out=tmp_path / "chatml", threads=1)
    assert "<|im_start|>" in (tmp_path / "chatml/chat_template.jinja").read_text()
    again = linear([tmp_path / "own", model_v1], chat_template="auto")
    merge(again, out=tmp_path / "auto", threads=1)
    assert (tmp_path / "auto/chat_template.jinja").read_text() == template
    with pytest.raises(UsageError, match="chat template 'chatmail' is not known"):
        merge(linear([model_v1, model_v2], chat_template="chatmail"), out=tmp_path / "x", threads=1)
    assert not (tmp_path / "x").exists()


def test_numbers_that_are_none_are_warned_of(tmp_path: Path) -> None:
    big = torch.full((2, 2), 60000.0)
    names = [save_model(tmp_path / name, {"w.weight": big}) for name in ("a", "b")]
    recipe = linear(names, parameters={"normalize": False}, dtype="float16")
    (warning,) = merge(recipe, out=tmp_path / "out", threads=1).warnings
    assert "w.weight holds NaN or infinity" in warning


# ---- models that do not belong together --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "what"),
    [
        ({"model_type": "llama"}, {"model_type": "qwen2"}, "model_type"),
        ({"rope_theta": 10000.0}, {"rope_theta": 500000.0}, "rotary base"),
        ({"rope_theta": 10000.0}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "rotary base"),
        ({}, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary scaling"),
        ({"num_attention_heads": 8}, {"num_attention_heads": 16}, "num_attention_heads"),
        (
            {"num_attention_heads": 8},
            {"num_attention_heads": 8, "num_key_value_heads": 2},
            "num_key_value_heads",
        ),
    ],
)
def test_configs_that_make_equal_weights_mean_different_things(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], what: str
) -> None:
    a = save_model(tmp_path / "a", near(BASE, 1), ours)
    b = save_model(tmp_path / "b", near(BASE, 2), theirs)
    with pytest.raises(ModelError, match=f"differ in {what} .* --force"):
        merge(linear([a, b]), out=tmp_path / "out")
    result = merge(linear([a, b]), out=tmp_path / "out", force=True, threads=1)
    assert any(f"differ in {what}" in text for text in result.warnings)


def test_equal_rotary_bases_are_equal_in_both_spellings(tmp_path: Path) -> None:
    old = {"rope_theta": 10000, "rope_scaling": None}
    new = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    a, b = save_model(tmp_path / "a", near(BASE, 1), old), save_model(tmp_path / "b", near(BASE, 2), new)
    assert merge(linear([a, b]), out=tmp_path / "out", threads=1).warnings == ()


def test_models_of_different_origin_are_warned_of(models: dict[str, str], tmp_path: Path) -> None:
    stranger = save_model(tmp_path / "stranger", decoder(77))
    (warning,) = merge(linear([models["a"], stranger]), out=tmp_path / "out", threads=1).warnings
    assert "'" + str(stranger) + "' is far from" in warning


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("http://localhost:1/v1#model", "endpoint"),
        ("nowhere", "no model at 'nowhere'"),
        ("embedded:v9", "embedded model"),
        ("", "models.1.model"),
    ],
)
def test_references_that_are_no_weights(models: dict[str, str], tmp_path: Path, reference: str, message: str) -> None:
    with pytest.raises(UpholdError, match=message):
        merge(linear([models["a"], reference]), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quantised_model_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", BASE, {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(ModelError, match="is quantised"):
        merge(linear([models["a"], small]), out=tmp_path / "out")


# ---- memory and dry runs -----------------------------------------------------------------------------------------


def test_a_dry_run_counts_bytes_and_tensors(models: dict[str, str], tmp_path: Path) -> None:
    found = estimate(dare(models), threads=1)
    size = sum(value.nbytes for value in BASE.values())
    assert (found.bytes_read, found.bytes_written) == (3 * size, size)
    assert (found.tensors, found.merged) == (len(BASE), len(BASE))
    assert "12 merged, 0 copied" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["method"] == "dare_linear"


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    pytest.skip("this system does not say how much memory is anonymous")


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    names = []
    for number in range(2):
        value = torch.full((8192, 4096), float(number), dtype=torch.bfloat16)
        names.append(save_model(tmp_path / str(number), {"w.weight": value}))
        del value
    base = anonymous()
    peak = 0

    class Watching:
        def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
            nonlocal peak
            peak = max(peak, anonymous() - base)

    with prepared(load_recipe(linear(names))) as (plan, _):
        executing.execute(plan, Watching(), threads=1)
    assert peak < 80_000_000 < 8192 * 4096 * 4


def test_importing_the_package_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, uphold.merge, uphold.merge.protocol; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
