"""What holds for every merge method, whatever its formula."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from tests.merge.whole import instance, merged
from uphold.core.registry import methods

MERGEKIT = [
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "model_stock",
    "sce",
    "ram",
    "ramplus_tl",
    "nearswap",
    "arcee_fusion",
    "passthrough",
]
PAPERS = ["ties_paper", "della_paper", "breadcrumbs_paper"]
EACH = {"weights": (0.5, 1.0, 0.25)}
TWO = {"weights": (0.7, 0.3)}
# Name of a case: method, number of models, whether there is a base, settings.
CASES = {
    "linear": ("linear", 3, False, EACH),
    "linear, not normalised": ("linear", 3, False, {"weights": (0.5, -1.0, 0.25), "normalize": False}),
    "linear with its base": ("linear", 2, True, TWO | {"base_settings": {"weight": 0.5}}),
    "slerp": ("slerp", 1, True, {"t": 0.3}),
    "nuslerp": ("nuslerp", 2, False, TWO),
    "nuslerp with a base": ("nuslerp", 2, True, TWO),
    "nuslerp by rows": ("nuslerp", 2, True, TWO | {"nuslerp_flatten": False}),
    "nuslerp by columns": ("nuslerp", 2, True, TWO | {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "multislerp": ("multislerp", 3, False, EACH),
    "multislerp with a base": ("multislerp", 3, True, EACH),
    "karcher": ("karcher", 3, False, {}),
    "karcher with a base": ("karcher", 2, True, {}),
    "task_arithmetic": ("task_arithmetic", 3, True, EACH),
    "ties": ("ties", 3, True, EACH | {"density": 0.5}),
    "ties, rescaled": ("ties", 3, True, EACH | {"density": 0.5, "rescale": True}),
    "ties, whole": ("ties", 3, True, EACH),
    "ties_paper": ("ties_paper", 3, True, {}),
    "dare_linear": ("dare_linear", 3, True, EACH | {"density": 0.5}),
    "dare_ties": ("dare_ties", 3, True, EACH | {"density": 0.5}),
    "breadcrumbs": ("breadcrumbs", 3, True, EACH | {"density": 0.5, "gamma": 0.1}),
    "breadcrumbs_ties": ("breadcrumbs_ties", 3, True, EACH | {"density": 0.5, "gamma": 0.1}),
    "breadcrumbs_paper": ("breadcrumbs_paper", 3, True, {"density": 0.5, "gamma": 0.1}),
    "della": ("della", 3, True, EACH | {"density": 0.5}),
    "della_linear": ("della_linear", 3, True, EACH | {"density": 0.5}),
    "della_paper": ("della_paper", 3, True, {"density": 0.5}),
    "model_stock": ("model_stock", 3, True, {}),
    "model_stock by rows": ("model_stock", 3, True, {"filter_wise": True}),
    "sce": ("sce", 3, True, {}),
    "sce, half": ("sce", 3, True, {"select_topk": 0.5}),
    "ram": ("ram", 3, True, {}),
    "ramplus_tl": ("ramplus_tl", 3, True, {}),
    "nearswap": ("nearswap", 1, True, {"t": 0.1}),
    "arcee_fusion": ("arcee_fusion", 1, True, {}),
    "passthrough": ("passthrough", 1, False, {"scale": 1.5}),
}
SHAPES = [(), (1,), (7,), (1, 5), (5, 1), (4, 6), (2, 3, 4), (0,), (3, 0)]


def draw(shape, count, seed=0, spread=0.3):
    """A base and models that came from it, with entries that did not change, some of them -0.0."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    base[torch.rand(shape, generator=generator) < 0.1] = -0.0
    models = []
    for _ in range(count):
        change = spread * torch.randn(shape, generator=generator)
        # Few distinct values, so that magnitudes are often equal.
        change = (change * 16).round() / 16 * (torch.rand(shape, generator=generator) < 0.8)
        models.append(base + change)
    return base, models


def run(case, base, models, **more):
    name, count, with_base, options = CASES[case]
    return merged(name, models[:count], base if with_base else None, **(options | more))


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


def test_all_names_of_mergekit_and_the_papers_are_there():
    found = {method.name: method for method in methods("merge")}
    assert set(found) >= {*MERGEKIT, *PAPERS}
    assert {name for name, *_ in CASES.values()} == {*MERGEKIT, *PAPERS}
    for name in (*MERGEKIT, *PAPERS):
        assert found[name].summary.endswith(".")
        names = [parameter.name for parameter in instance(name).parameters]
        assert len(set(names)) == len(names)
        for parameter in instance(name).parameters:
            assert parameter.help
            if isinstance(parameter.default, float):
                assert parameter.low <= parameter.default <= parameter.high


def test_listing_methods_imports_no_torch():
    code = (
        "import importlib, pkgutil, sys, uphold.merge\n"
        "for one in pkgutil.iter_modules(uphold.merge.__path__):\n"
        "    if not one.ispkg: importlib.import_module('uphold.merge.' + one.name)\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
@limits(max_examples=8, deadline=None)
def test_any_chunks_give_the_same_bits(case, data):
    shape = data.draw(st.sampled_from([(37,), (9, 5), (3, 4, 5), (11, 1)]))
    size = data.draw(st.integers(1, math.prod(shape)))
    base, models = draw(shape, 3, data.draw(st.integers(0, 3)))
    assert torch.equal(bits(run(case, base, models, size=size)), bits(run(case, base, models)))


@pytest.mark.parametrize("case", CASES)
def test_chunks_and_threads_do_not_show_in_larger_tensors(case):
    base, models = draw((60, 701), 3)
    row = instance(CASES[case][0]).unit == "row"
    whole = bits(run(case, base, models))
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        assert torch.equal(bits(run(case, base, models, size=7 if row else 5000)), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("linear, not normalised", "passthrough")])
def test_a_model_merged_with_itself_is_that_model(case):
    for shape in SHAPES:
        base, _ = draw(shape, 0)
        assert torch.equal(bits(run(case, base, [base.clone() for _ in range(3)])), bits(base))


@pytest.mark.parametrize("case", CASES)
def test_every_shape_and_size_has_a_finite_result(case):
    for shape in SHAPES:
        base, models = draw(shape, 3)
        assert run(case, base, models).isfinite().all()
    for value in (0.0, 1e-30, 1e15):
        base = torch.full((4, 6), value)
        assert run(case, base, [base * scale for scale in (1, 0.5, -1)]).isfinite().all()


@pytest.mark.parametrize(
    "case", [case for case in CASES if any(one.name == "lambda" for one in instance(CASES[case][0]).parameters)]
)
def test_lambda_0_is_the_base(case):
    base, models = draw((6, 11), 3)
    assert torch.equal(bits(run(case, base, models, **{"lambda": 0.0})), bits(base))
    assert not torch.equal(run(case, base, models, **{"lambda": 1.0}), base)


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_bits(case):
    base, models = draw((6, 11), 3)
    assert torch.equal(bits(run(case, base, models, seed=3)), bits(run(case, base, models, seed=3)))
    random = CASES[case][0].startswith(("dare", "della"))
    assert torch.equal(run(case, base, models, seed=3), run(case, base, models, seed=4)) != random
