from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from uphold.core.stats import Ints
from uphold.measure.rule_search import RuleSearch, search_p, without


def random_conditions(generator: np.random.Generator, instances: int, count: int) -> list[Ints]:
    return [np.flatnonzero(generator.random(instances) < share) for share in generator.uniform(0.1, 0.6, count)]


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_with_few_conditions_the_search_is_exhaustive(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = random_conditions(generator, 120, 8)
    marked = np.sort(generator.choice(120, 25, replace=False))

    found = RuleSearch(120, rows, 10, 2).best(marked)

    scores = []
    for conjunction in [*combinations(range(8), 1), *combinations(range(8), 2)]:
        covered = set.intersection(*(set(rows[place].tolist()) for place in conjunction))
        hits, count = len(covered & set(marked.tolist())), len(covered)
        if hits >= 3 and count >= 10 and hits * 120 > count * 25:
            mass, more = scipy_stats.hypergeom.pmf([hits, hits + 1], 120, 25, count)
            bound = np.log(mass / (1 - more / mass)) if more < mass else 0.0
            scores.append((min(0.0, bound) + (len(conjunction) - 1) * np.log(8), conjunction))
    best = min((entry for entry in scores if entry[0] < 0), default=None)
    if best is None or found is None:
        assert found is None
    else:
        assert found.score == pytest.approx(best[0], abs=1e-9)


def test_the_score_bounds_the_tail_closely() -> None:
    rows = [np.arange(100)]
    found = RuleSearch(1000, rows, 10, 1).best(np.concatenate([np.arange(20), np.arange(500, 530)]))

    assert found is not None
    tail = scipy_stats.hypergeom.sf(19, 1000, 50, 100)
    assert tail <= np.exp(found.score) <= 1.1 * tail


def test_a_conjunction_is_found_that_its_parts_do_not_show() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random(2000) < 0.5, generator.random(2000) < 0.5
    rows = [np.flatnonzero(first), np.flatnonzero(second), *random_conditions(generator, 2000, 20)]
    marked = np.flatnonzero(generator.random(2000) < np.where(first & second, 0.2, 0.02))
    search = RuleSearch(2000, rows, 10, 2)

    found = search.best(marked)

    assert found is not None
    assert found.conjunction == (0, 1)
    assert search.covered((0, 1)).tolist() == np.flatnonzero(first & second).tolist()
    single = RuleSearch(2000, rows, 10, 1).best(marked)
    assert single is not None
    assert len(single.conjunction) == 1


def test_three_conditions_together() -> None:
    generator = np.random.default_rng(5)
    truth = generator.random((3, 3000)) < 0.5
    rows = [*(np.flatnonzero(held) for held in truth), *random_conditions(generator, 3000, 5)]
    marked = np.flatnonzero(generator.random(3000) < np.where(truth.all(0), 0.4, 0.02))

    found = RuleSearch(3000, rows, 10, 3).best(marked)

    assert found is not None
    assert found.conjunction == (0, 1, 2)


def test_the_corrected_p_keeps_the_chance_of_a_false_rule() -> None:
    generator = np.random.default_rng(0)
    searches, alpha, false = 200, 0.1, 0
    for seed in range(searches):
        search = RuleSearch(150, random_conditions(generator, 150, 15), 10, 2)
        best = search.best(np.sort(generator.choice(150, 20, replace=False)))
        false += best is not None and search_p(search, best, 20, 39, alpha, seed) is not None
    # P(more than 33 of 200 at a true rate of 0.1) is 0.2%
    assert false <= 33


def test_a_p_that_cannot_get_below_alpha_is_given_up_early() -> None:
    generator = np.random.default_rng(1)
    search = RuleSearch(200, random_conditions(generator, 200, 10), 10, 2)
    best = search.best(np.sort(generator.choice(200, 30, replace=False)))
    assert best is not None

    assert search_p(search, best, 30, 99, 0.999, 0) == pytest.approx(search_p(search, best, 30, 99, 0.99, 0) or 0)
    assert search_p(search, best, 30, 99, 0.01, 0) is None


def test_instances_can_be_put_aside() -> None:
    rows, stays = without([np.array([0, 2, 3]), np.array([1, 4])], np.array([2, 4]), 5)

    assert stays.tolist() == [0, 1, 3]
    assert [held.tolist() for held in rows] == [[0, 2], [1]]
