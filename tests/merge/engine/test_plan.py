from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.merge.engine.checkpoints import decoder, linear, near, save_model
from uphold.core.errors import ModelError, UpholdError, UsageError
from uphold.merge.engine.plan import Plan
from uphold.merge.engine.recipe import load_recipe
from uphold.merge.engine.run import prepared
from uphold.models.checkpoint import open_checkpoint

BASE = decoder(0)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """A base and two fine-tunes of it."""
    found = {"base": BASE, "a": near(BASE, 1), "b": near(BASE, 2)}
    return {name: str(save_model(tmp_path / name, tensors)) for name, tensors in found.items()}


def planned(recipe: Mapping[str, Any]) -> Plan:
    with prepared(load_recipe(recipe)) as (plan, _):
        return plan


def by_name(plan: Plan) -> dict[str, Any]:
    return {one.name: one for one in plan.tensors}


def test_every_tensor_of_the_first_model_in_its_order(models: dict[str, str]) -> None:
    plan = planned(linear([models["a"], models["b"]], [1, 3]))
    assert [one.name for one in plan.tensors] == list(open_checkpoint(models["a"]).infos)
    assert all(one.settings is not None and one.settings.of("weight") == [1.0, 3.0] for one in plan.tensors)
    assert plan.warnings == ()


def test_gradients_follow_the_layers_and_are_at_their_start_outside(models: dict[str, str]) -> None:
    recipe = linear([models["a"], models["b"]])
    recipe["models"][0]["parameters"]["weight"] = [0.0, 1.0]
    weights = {name: one.settings.of("weight")[0] for name, one in by_name(planned(recipe)).items()}
    assert [weights[f"model.layers.{number}.mlp.up_proj.weight"] for number in range(3)] == [0.0, 0.5, 1.0]
    assert [weights[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")] == [0.0] * 3


def test_a_base_that_is_not_listed_is_added_and_one_that_is_listed_is_no_model(models: dict[str, str]) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": models["base"], "parameters": {"weight": 0.5}}
    for entries in (["a", "b"], ["base", "a", "b"], ["a", "base", "b"]):
        plan = planned({**recipe, "models": [{"model": models[name]} for name in entries]})
        one = plan.tensors[0]
        assert one.base is not None
        assert [source.model.name for source in (one.base, *one.models)] == [
            models[name] for name in ("base", "a", "b")
        ]
        assert one.settings is not None
        assert one.settings.base == ({"weight": 0.5} if "base" in entries else {})


@pytest.mark.parametrize(
    ("method", "base", "names", "message"),
    [
        ("task_arithmetic", None, ["a"], "needs a base_model"),
        ("slerp", "a", ["a", "b", "base"], "takes 1 model beside the base, and .* has 2"),
        ("slerp", "a", ["a"], "takes 1 model beside the base, and .* has 0"),
        ("slurp", "a", ["a"], "unknown merge method 'slurp': did you mean 'slerp'"),
    ],
)
def test_the_number_of_models_must_fit_the_method(
    models: dict[str, str], method: str, base: str | None, names: list[str], message: str
) -> None:
    recipe: dict[str, Any] = {"merge_method": method, "models": [{"model": models[name]} for name in names]}
    recipe |= {"parameters": {"weight": 1, "t": 0.5}} if method != "slurp" else {}
    if base is not None:
        recipe["base_model"] = models[base]
    with pytest.raises(UsageError, match=message):
        planned(recipe)


# ---- slices ------------------------------------------------------------------------------------------------------


def slices(*parts: list[tuple[str, int, int]], method: str = "passthrough", **more: Any) -> dict[str, Any]:
    entries = [
        {"sources": [{"model": model, "layer_range": [first, end]} for model, first, end in sources]}
        for sources in parts
    ]
    return {"merge_method": method, "slices": entries, **more}


def test_slices_are_numbered_anew(models: dict[str, str]) -> None:
    plan = planned(slices([(models["a"], 0, 2)], [(models["b"], 1, 3)]))
    found = {
        name: (one.models[0].model.name, one.models[0].name)
        for name, one in by_name(plan).items()
        if "up_proj" in name or "layers" not in name
    }
    assert found == {
        "model.embed_tokens.weight": (models["a"], "model.embed_tokens.weight"),
        "model.layers.0.mlp.up_proj.weight": (models["a"], "model.layers.0.mlp.up_proj.weight"),
        "model.layers.1.mlp.up_proj.weight": (models["a"], "model.layers.1.mlp.up_proj.weight"),
        "model.layers.2.mlp.up_proj.weight": (models["b"], "model.layers.1.mlp.up_proj.weight"),
        "model.layers.3.mlp.up_proj.weight": (models["b"], "model.layers.2.mlp.up_proj.weight"),
        "model.norm.weight": (models["b"], "model.norm.weight"),
        "lm_head.weight": (models["b"], "lm_head.weight"),
    }
    assert [(one.name, number) for one, number in plan.origins] == [
        (models["a"], 0),
        (models["a"], 1),
        (models["b"], 1),
        (models["b"], 2),
    ]


def test_parameters_of_slices_go_from_the_source_outwards_and_gradients_run_within_a_slice(
    models: dict[str, str],
) -> None:
    recipe = slices(
        [(models["a"], 0, 2), (models["b"], 0, 2)], [(models["a"], 2, 3), (models["b"], 2, 3)], method="linear"
    )
    recipe["parameters"] = {"weight": 9}
    recipe["slices"][0]["parameters"] = {"weight": [1, 2]}
    recipe["slices"][0]["sources"][1]["parameters"] = {"weight": [{"filter": "mlp", "value": 7}]}
    recipe["slices"][1]["parameters"] = {"weight": [3, 4]}
    weights = {name: one.settings.of("weight") for name, one in by_name(planned(recipe)).items()}
    assert [weights[f"model.layers.{number}.mlp.up_proj.weight"] for number in range(3)] == [[1, 7], [2, 7], [4, 4]]
    assert weights["model.layers.1.self_attn.q_proj.weight"] == [2, 2]
    assert weights["model.embed_tokens.weight"] == [1, 1]
    assert weights["lm_head.weight"] == [3, 3]


@pytest.mark.parametrize(
    ("parts", "message"),
    [([("a", 2, 4)], r"slice \[2, 4\] of '.*' ends behind its 3 layers"), ([("a", 0, 99999)], "ends behind")],
)
def test_slices_behind_the_last_layer(models: dict[str, str], parts: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(slices([(models[name], first, end) for name, first, end in parts]))


def test_a_slice_without_the_base_that_the_method_needs(models: dict[str, str]) -> None:
    recipe = slices([(models["a"], 0, 3)], method="task_arithmetic", base_model=models["base"])
    with pytest.raises(UsageError, match=r"needs '.*base' among the sources"):
        planned({**recipe, "parameters": {"weight": 1}})


def test_models_of_two_depths_need_slices(models: dict[str, str], tmp_path: Path) -> None:
    deep = save_model(tmp_path / "deep", decoder(1, layers=4))
    with pytest.raises(UsageError, match=r"4 layers in model\.layers.* give slices"):
        planned(linear([models["a"], deep]))


# ---- modules -----------------------------------------------------------------------------------------------------


def two_stacks(seed: int) -> dict[str, torch.Tensor]:
    tensors = decoder(seed, 2)
    return {
        **{f"encoder.{name}": value for name, value in tensors.items()},
        **{f"decoder.{name}": value for name, value in tensors.items()},
    }


def test_modules_have_recipes_of_their_own(tmp_path: Path) -> None:
    a, b = (str(save_model(tmp_path / name, two_stacks(seed))) for name, seed in (("a", 1), ("b", 2)))
    entries = [{"model": a, "parameters": {"weight": 1}}, {"model": b, "parameters": {"weight": 1}}]
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "modules": {"encoder": {"models": entries}, "decoder": {"models": entries[::-1]}},
    }
    plan = by_name(planned(recipe))
    assert plan["encoder.model.norm.weight"].models[0].model.name == a
    assert plan["decoder.model.norm.weight"].models[0].model.name == b
    del recipe["modules"]["decoder"]
    with pytest.raises(UsageError, match="no module of the recipe makes decoder"):
        planned(recipe)
    plan = by_name(planned({**recipe, "missing": "base"}))
    assert plan["decoder.model.norm.weight"].settings is None
    recipe["modules"]["encodr"] = recipe["modules"].pop("encoder")
    with pytest.raises(UsageError, match=r"'encodr' names no tensor .* begin with decoder, encoder"):
        planned(recipe)


def test_slices_of_a_model_with_two_stacks_need_modules(tmp_path: Path) -> None:
    a = str(save_model(tmp_path / "a", two_stacks(1)))
    with pytest.raises(UsageError, match="give 'modules'"):
        planned(slices([(a, 0, 1)]))


# ---- what does not fit -------------------------------------------------------------------------------------------


def without(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name not in names}


def test_a_tensor_that_one_model_lacks_is_an_error_or_as_in_the_base(models: dict[str, str], tmp_path: Path) -> None:
    small = str(save_model(tmp_path / "small", without(near(BASE, 3), "model.norm.weight")))
    with pytest.raises(ModelError, match=r"'.*small' lacks model\.norm\.weight, .*'missing: base'"):
        planned(linear([models["a"], small]))
    plan = planned(linear([models["a"], small], missing="base"))
    one = by_name(plan)["model.norm.weight"]
    assert (one.settings, one.base.model.name) == (None, models["a"])
    assert any("model.norm.weight is as in" in text for text in plan.warnings)


def test_a_tensor_that_only_others_have_is_an_error_or_left_out(models: dict[str, str], tmp_path: Path) -> None:
    more = str(save_model(tmp_path / "more", {**near(BASE, 3), "model.extra.weight": torch.ones(2)}))
    with pytest.raises(ModelError, match=r"has 1 tensors that .* lacks, the first is model\.extra\.weight"):
        planned(linear([models["a"], more]))
    plan = planned(linear([models["a"], more], missing="base"))
    assert "model.extra.weight" not in by_name(plan)
    assert any("left out 1 tensors" in text for text in plan.warnings)


def test_constants_that_libraries_saved_at_times_do_not_count(models: dict[str, str], tmp_path: Path) -> None:
    old = {**near(BASE, 3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    with_buffers = str(save_model(tmp_path / "old", old))
    assert len(planned(linear([models["a"], with_buffers])).tensors) == len(BASE)
    plan = by_name(planned(linear([with_buffers, models["a"]])))
    assert plan["model.layers.0.self_attn.rotary_emb.inv_freq"].settings is None


def test_shapes_must_be_equal(models: dict[str, str], tmp_path: Path) -> None:
    odd = str(save_model(tmp_path / "odd", {**near(BASE, 3), "model.norm.weight": torch.ones(5)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight has shape \(4,\) in .* and \(5,\) in"):
        planned(linear([models["a"], odd]))


def test_of_two_vocabularies_the_common_rows_are_merged(models: dict[str, str], tmp_path: Path) -> None:
    longer = str(save_model(tmp_path / "longer", near(decoder(0, rows=9), 3)))
    plan = planned(linear([models["a"], longer]))
    assert by_name(plan)["lm_head.weight"].shape == (6, 4)
    assert plan.rows == 6
    assert any("the first 6 are merged" in text for text in plan.warnings)


def test_integers_are_copied_from_the_base(tmp_path: Path) -> None:
    tensors = {**BASE, "model.steps": torch.tensor(3)}
    base = save_model(tmp_path / "base", tensors)
    other = save_model(tmp_path / "other", {**near(BASE, 1), "model.steps": torch.tensor(9)})
    recipe = linear([other, base], dtype="float16")
    recipe |= {"merge_method": "task_arithmetic", "base_model": str(base)}
    one = by_name(planned(recipe))["model.steps"]
    assert one.settings is None
    assert one.base.model.name == str(base)
    assert one.dtype == torch.int64


def test_eight_bit_floats_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    small = {**BASE, "model.norm.weight": BASE["model.norm.weight"].to(torch.float8_e4m3fn)}
    with pytest.raises(ModelError, match="8-bit floats"):
        planned(linear([save_model(tmp_path / "fp8", small), models["a"]]))


# ---- tied weights ------------------------------------------------------------------------------------------------


def test_a_tied_head_takes_the_embeddings_where_another_model_has_its_own(
    models: dict[str, str], tmp_path: Path
) -> None:
    tied = str(save_model(tmp_path / "tied", without(near(BASE, 3), "lm_head.weight"), {"tie_word_embeddings": True}))
    one = by_name(planned(linear([models["a"], tied])))["lm_head.weight"]
    assert [source.name for source in one.models] == ["lm_head.weight", "model.embed_tokens.weight"]
    with pytest.raises(ModelError, match=r"has 1 tensors that '.*tied' lacks, the first is lm_head\.weight"):
        planned(linear([tied, models["a"]]))


def test_a_head_that_repeats_the_embeddings_counts_as_tied(tmp_path: Path) -> None:
    tied = save_model(tmp_path / "tied", without(BASE, "lm_head.weight"))
    same = save_model(tmp_path / "same", {**BASE, "lm_head.weight": BASE["model.embed_tokens.weight"]})
    assert "lm_head.weight" not in by_name(planned(linear([tied, same])))


def test_an_untied_head_that_is_missing_is_an_error(models: dict[str, str], tmp_path: Path) -> None:
    broken = save_model(tmp_path / "broken", without(BASE, "lm_head.weight"), {"tie_word_embeddings": False})
    with pytest.raises(ModelError, match=r"lacks lm_head\.weight"):
        planned(linear([models["a"], broken]))


# ---- remarks -----------------------------------------------------------------------------------------------------


def test_a_filter_that_fits_nothing_is_warned_of(models: dict[str, str]) -> None:
    recipe = linear([models["a"], models["b"]])
    recipe["models"][0]["parameters"]["weight"] = [{"filter": "attn_self", "value": 1}, {"value": 2}]
    assert planned(recipe).warnings == ("the filter 'attn_self' of 'weight' fits no tensor",)


@pytest.mark.parametrize(("dtype", "out", "found"), [("bfloat16", None, "bfloat16"), ("float32", "float16", "float16")])
def test_element_types(models: dict[str, str], dtype: str, out: str | None, found: str) -> None:
    recipe = linear([models["a"], models["b"]], dtype=dtype) | ({"out_dtype": out} if out else {})
    assert {one.dtype for one in planned(recipe).tensors} == {getattr(torch, found)}


def test_errors_name_no_internals(models: dict[str, str]) -> None:
    with pytest.raises(UpholdError) as caught:
        planned(linear([models["a"], "nowhere/at/all"]))
    assert "\n" not in str(caught.value)
