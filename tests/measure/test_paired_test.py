from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from uphold.core import stats
from uphold.measure import paired_test as module
from uphold.measure.paired_test import paired_test
from uphold.measure.pairs import Arrays, Pairs, pairs_of


def judged(both_right: int, negative: int, positive: int, both_wrong: int, size: int = 0) -> Pairs:
    """Pairs with these counts; in clusters of `size` neighbours where it is given."""
    counts = (both_right, negative, positive, both_wrong)
    old = np.repeat([True, True, False, False], counts)
    new = np.repeat([True, False, True, False], counts)
    clusters = np.arange(len(old)) // size if size else None
    return pairs_of(Arrays(old.astype(float), new.astype(float), old == new, old, new), clusters)


def scored(old: list[float], new: list[float], clusters: list[int] | None = None) -> Pairs:
    scores = np.array(old), np.array(new)
    return pairs_of(Arrays(*scores, scores[0] == scores[1]), None if clusters is None else np.array(clusters))


def test_right_or_wrong_answers_get_the_exact_test_of_mcnemar() -> None:
    test = paired_test(judged(10, 8, 1, 5))

    assert (test.name, test.clusters) == ("exact McNemar", None)
    # 8 against 1: 2 * (1 + 9) / 512; mid-p takes half of the outcome seen: less 9 / 512
    assert test.p == pytest.approx(20 / 512)
    assert test.p_midp == pytest.approx(11 / 512)
    assert str(test) == "exact McNemar p = 0.0391"


def test_flips_that_come_together_prove_less() -> None:
    # Eight negative flips in two clusters of four: two clusters, both for the worse, 2 * (1/2) ** 2
    test = paired_test(judged(0, 8, 0, 8, size=4))

    assert (test.name, test.clusters, test.p_midp) == ("clustered McNemar", 4, None)
    assert test.p == pytest.approx(0.5)
    assert paired_test(judged(0, 8, 0, 8)).p == pytest.approx(2 / 2**8)


def test_clusters_of_one_give_the_plain_test() -> None:
    assert paired_test(judged(3, 8, 1, 5, size=1)).p == pytest.approx(paired_test(judged(3, 8, 1, 5)).p, rel=1e-9)


def test_scores_get_a_permutation_test() -> None:
    # All four rise: 2 of 16 sign patterns are as extreme.
    test = paired_test(scored([0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.4, 0.8]))

    assert test.name == "sign-flip permutation test"
    assert test.p == pytest.approx(2 / 16)


def test_rounding_is_no_difference() -> None:
    assert paired_test(scored([0.1 + 0.2, 0.5], [0.3, 0.5])).p == 1.0


def test_clusters_of_scores_are_flipped_together() -> None:
    test = paired_test(scored([0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.4, 0.8], [0, 0, 1, 1]))

    assert (test.name, test.clusters) == ("cluster sign-flip permutation test", 2)
    assert test.p == pytest.approx(2 / 4)


def test_many_scores_get_the_t_test(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    old = generator.uniform(0.2, 0.8, 300)
    new = old + generator.normal(0.01, 0.1, 300)
    by_permutation = paired_test(scored(list(old), list(new)))
    monkeypatch.setattr(module, "MANY", 100)
    test = paired_test(scored(list(old), list(new)))
    by_cluster = paired_test(scored(list(old), list(new), list(range(300))))

    assert (test.name, by_cluster.name) == ("paired t test", "clustered t test")
    assert test.p == pytest.approx(ttest_rel(new, old).pvalue, rel=1e-9)
    assert by_cluster.p == pytest.approx(test.p, rel=1e-9)
    assert test.p == pytest.approx(by_permutation.p, abs=0.03)


@pytest.mark.parametrize(("change", "p"), [(0.0, 1.0), (0.125, 0.0)])
def test_many_equal_differences_have_no_variance(monkeypatch: pytest.MonkeyPatch, change: float, p: float) -> None:
    monkeypatch.setattr(module, "MANY", 10)

    assert paired_test(scored([0.5] * 20, [0.5 + change] * 20)).p == p


def test_the_seed_fixes_the_permutations() -> None:
    generator = np.random.default_rng(0)
    pairs = scored(list(generator.uniform(size=50)), list(generator.uniform(size=50)))

    assert paired_test(pairs, seed=1) == paired_test(pairs, seed=1)
    assert paired_test(pairs, seed=1).p == stats.paired_permutation_test(pairs.new_score - pairs.old_score, seed=1)
