from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uphold.core.errors import DataError, UpholdError, UsageError
from uphold.merge.engine.recipe import MOST_MODELS, load_recipe

SLERP = """
slices:
  - sources:
      - model: org/one
        layer_range: [0, 40]
      - model: org/two
        layer_range: [0, 40]
merge_method: slerp
base_model: org/one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
"""


def two(**more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], **more}


def test_the_usual_slerp_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(SLERP)
    recipe = load_recipe(path)
    assert recipe.merge_method == "slerp"
    assert recipe.references() == ["org/one", "org/two"]
    assert recipe.slices[0].sources[1].layer_range == (0, 40)
    filters = recipe.parameters["t"]
    assert isinstance(filters, tuple)
    assert [(entry.filter, entry.value) for entry in filters] == [  # type: ignore[union-attr]
        ("self_attn", (0, 0.5, 0.3, 0.7, 1)),
        ("mlp", (1, 0.5, 0.7, 0.3, 0)),
        (None, 0.5),
    ]
    assert load_recipe(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("a", "a"),
        ("embedded:v1", "embedded:v1"),
        ("org/a@main+org/lora", "org/a@main+org/lora"),
        ({"path": "org/a"}, "org/a"),
        ({"path": "org/a", "revision": "main"}, "org/a@main"),
        ({"model": {"path": "org/a", "revision": "main"}, "lora": {"path": "lora"}}, "org/a@main+lora"),
        ({"model": "org/a", "lora": "lora"}, "org/a+lora"),
    ],
)
def test_models_are_named_in_all_of_mergekits_forms(written: Any, name: str) -> None:
    recipe = load_recipe({"merge_method": "linear", "models": [{"model": written}]})
    assert recipe.models[0].model == name


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1e-3}}]\n")
    assert load_recipe(path).models[0].parameters["weight"] == 0.001


def test_both_forms_of_the_tokenizer_key() -> None:
    choice = load_recipe(two(tokenizer_source="union")).vocabulary()
    assert choice is not None
    assert choice.source == "union"
    full = load_recipe(
        two(
            tokenizer={
                "source": "base",
                "tokens": {"<x>": {"source": "b", "force": True}, "<y>": {"source": {"kind": "zero"}}},
                "pad_to_multiple_of": 8,
            }
        )
    ).vocabulary()
    assert full is not None
    assert full.tokens["<x>"].force
    assert full.pad_to_multiple_of == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (two(merge_metod="x"), "unknown key of the recipe 'merge_metod': did you mean 'merge_method'"),
        ({"merge_method": "linear", "models": [{"modle": "a", "model": "b"}]}, "'modle': did you mean 'model'"),
        (
            {"merge_method": "x", "slices": [{"sources": [{"model": "a", "layer_range": [0, 1], "layers": 2}]}]},
            "unknown key in slices.0.sources.0 .*'layers': did you mean 'layer_range'",
        ),
        (two(tokenizer={"sauce": "union"}), "'sauce': did you mean 'source'"),
        ({"models": [{"model": "a"}]}, "lacks 'merge_method'"),
        ({"merge_method": "x", "slices": [{"sources": [{"model": "a"}]}]}, "lacks 'slices.0.sources.0.layer_range'"),
    ],
)
def test_keys_that_are_wrong_or_missing_are_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(content)


SOURCE = {"model": "a", "layer_range": [0, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"merge_method": "linear"}, "exactly one of models, slices and modules"),
        ({"merge_method": "linear", "models": []}, "exactly one of models, slices and modules"),
        (two(slices=[{"sources": [SOURCE]}]), "exactly one of models, slices and modules"),
        (two(tokenizer={}, tokenizer_source="union"), "not both"),
        (two(dtype="int8"), "'int8'; expected one of float32"),
        (two(random_seed=-1), "random_seed"),
        (two(parameters={"weight": float("nan")}), "parameters.weight: nan; expected a finite number"),
        (two(parameters={"weight": [0.1, float("inf")]}), "inf; expected a finite number"),
        (two(parameters={"weight": []}), "an empty list"),
        (two(parameters={"weight": None}), "weight: empty; expected a number"),
        (two(parameters={"weight": {"filter": "x"}}), "a filter without a value"),
        (two(parameters={"weight": [{"value": 1, "fliter": "x"}]}), "'fliter' beside a filter"),
        (two(parameters={"weight": [0.5, {"value": 1}]}), "not both in one list"),
        ({"merge_method": "x", "slices": [{"sources": [SOURCE | {"layer_range": [2, 2]}]}]}, "FIRST < END"),
        ({"merge_method": "x", "slices": [{"sources": [SOURCE | {"layer_range": [-1, 2]}]}]}, "FIRST < END"),
        ({"merge_method": "x", "slices": [{"sources": [SOURCE, SOURCE | {"layer_range": [0, 3]}]}]}, "equally many"),
        ({"merge_method": "x", "slices": [{"sources": []}]}, "slices.0.sources"),
        ({"merge_method": "x", "modules": {"default": {}}}, "either models or slices"),
        ({"merge_method": "x", "models": [{"model": {"lora": "b"}}]}, "a model without a path"),
        ({"merge_method": "x", "models": [{"model": {"path": "b", "rev": "x"}}]}, "'rev' in a model"),
        ({"merge_method": "x", "models": "a"}, "models"),
        (two(tokenizer={"tokens": {"x": {"source": {"kind": "one"}}}}), "model_token or zero"),
        (two(tokenizer={"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}}), "token or token_id"),
        ({"merge_method": "x", "models": [{"model": f"m{n}"} for n in range(MOST_MODELS + 1)]}, "at most 256"),
    ],
)
def test_values_that_cannot_be_are_one_clear_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UpholdError, match=message) as caught:
        load_recipe(content)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not empty"),
        ("- a\n- b\n", "not a list"),
        ("hello\n", "not text"),
        ("5\n", "not a number"),
        ("merge_method: linear\nmerge_method: ties\n", "line 2: the key .merge_method. stands there twice"),
        ("models: [{model: a, model: b}]\n", "the key .model. stands there twice"),
        ("models: [", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("models: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("merge_method: linear\nmodels: &x [*x]\n", "aliases that contain themselves"),
        (BOMB, "too many values"),
        ("#" * 300_001, "that is no recipe"),
        ("[" * 5000, "brackets in brackets"),
        ("- " * 5000, "not valid YAML"),
        ("? [1, 2]\n: 3\nmerge_method: linear\n", "not valid YAML"),
        ("1: 2\n", "lacks .merge_method."),
    ],
)
def test_hostile_files_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UpholdError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the recipe"):
        load_recipe(tmp_path / "gone.yaml")
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not valid YAML"):
        load_recipe(path)
