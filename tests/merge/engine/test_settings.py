from __future__ import annotations

from typing import Any

import pytest

from uphold.core.errors import DataError, UpholdError, UsageError
from uphold.merge.engine.recipe import Setting, load_recipe
from uphold.merge.engine.run import method_of
from uphold.merge.engine.settings import Place, check_parameters, evaluate, lookup, resolve
from uphold.merge.protocol import Parameter


def parsed(value: Any) -> Setting:
    return load_recipe({"merge_method": "x", "models": [{"model": "a"}], "parameters": {"p": value}}).parameters["p"]


@pytest.mark.parametrize(
    ("layer", "value"),
    [(0, 0), (1, 0.0645), (7, 0.4516), (8, 0.4935), (15, 0.3129), (16, 0.3258), (24, 0.7290), (31, 1)],
)
def test_gradients_are_as_the_sheet_has_them(layer: int, value: float) -> None:
    assert evaluate(parsed([0, 0.5, 0.3, 0.7, 1]), "w", layer / 31) == pytest.approx(value, abs=5e-5)


def test_a_gradient_of_one_value_is_that_value() -> None:
    assert evaluate(parsed([0.4]), "w", 0.7) == 0.4
    assert evaluate(parsed([0.4]), "w", 1.0) == 0.4


def test_of_texts_the_nearest_below_holds() -> None:
    assert [evaluate(parsed(["sum", "count"]), "w", at) for at in (0.0, 0.9, 1.0)] == ["sum", "sum", "count"]


def test_the_first_filter_that_fits_wins() -> None:
    setting = parsed(
        [{"filter": "attn", "value": [0, 1]}, {"filter": "q_proj", "value": 7}, {"filter": "*", "value": 2}]
    )
    assert evaluate(setting, "self_attn.q_proj", 0.25) == 0.25
    assert evaluate(setting, "mlp", 0.25) == 2
    assert evaluate(parsed({"filter": "attn", "value": 1}), "mlp", 0.0) is None


def test_the_nearest_scope_that_says_something_wins() -> None:
    source, part, module = (
        {"p": parsed({"filter": "attn", "value": 1})},
        {"p": parsed({"filter": "mlp", "value": 2})},
        {"p": 3},
    )
    scopes = [source, part, {}, module]
    found = [lookup("p", scopes, Place(name, 0.0)) for name in ("attn", "mlp", "norm")]
    assert found == [1, 2, 3]
    assert lookup("q", scopes, Place("attn", 0.0)) is None


WEIGHT = Parameter("weight", per_model=True)
PARAMETERS = (WEIGHT, Parameter("lambda", 1.0, low=0, high=2), Parameter("normalize", True), Parameter("steps", 3))


def settings(place: str = "w", **shared: Any) -> Any:
    return resolve("m", PARAMETERS, Place(place, 0.0), [("a", "w", {"weight": 2}), ("b", "w", {})], None, [shared])


def test_parameters_of_each_model_and_of_all() -> None:
    found = settings(weight=5, normalize=0, steps=7.0)
    assert found.of("weight") == [2.0, 5.0]
    assert found.options == {"lambda": 1.0, "normalize": False, "steps": 7}
    assert isinstance(found.options["steps"], int)
    assert found.base == {}


def test_the_base_has_what_is_set_for_it_where_it_is_listed() -> None:
    found = resolve("m", PARAMETERS, Place("w", 0.0), [("a", "w", {"weight": 2})], ("w", {}), [])
    assert found.base == {}
    found = resolve("m", PARAMETERS, Place("w", 0.0), [("a", "w", {"weight": 2})], ("w", {"weight": 3}), [])
    assert found.base == {"weight": 3.0}


@pytest.mark.parametrize(
    ("shared", "error", "message"),
    [
        ({}, UsageError, "'m' needs the parameter 'weight' of b for w.*: write 'weight:' under the model's"),
        ({"weight": "much"}, DataError, "'much'; expected a number"),
        ({"weight": True}, DataError, "expected a number"),
        ({"weight": 1, "lambda": 3}, DataError, "3; expected between 0 and 2"),
        ({"weight": 1, "normalize": 0.5}, DataError, "expected true or false"),
    ],
)
def test_values_that_a_parameter_cannot_have(shared: dict[str, Any], error: type[UpholdError], message: str) -> None:
    with pytest.raises(error, match=message):
        settings(**shared)


def test_a_parameter_that_no_method_has_is_refused_and_one_of_another_method_warned_of() -> None:
    def recipe(**parameters: Any) -> Any:
        return load_recipe({"merge_method": "linear", "models": [{"model": "a", "parameters": parameters}]})

    method = method_of("linear")
    with pytest.raises(UsageError, match=r"\(model a\) 'wieght': did you mean 'weight'"):
        check_parameters(recipe(wieght=1), method)
    (warning,) = check_parameters(recipe(weight=1, t=0.5), method)
    assert warning == "'linear' has no parameter 't': what the recipe says of it is unused"
