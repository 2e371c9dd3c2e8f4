import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.explain.restoring.two_versions import PLANTED, forks, hybrid
from uphold.core.errors import CorruptError, DataError
from uphold.explain.flips import FlipsConfig
from uphold.explain.restoring.explanation import Edge, Explanation, Share, SiteEffect, load_explanation
from uphold.explain.restoring.find import Found, _depth, find, halves
from uphold.explain.restoring.forks import Forks
from uphold.models.sites.site import Kind, parse_site


@pytest.mark.parametrize("rank", ["distance", "net"])
def test_the_planted_site_is_found_first(rank: str) -> None:
    found = find(
        hybrid(),
        forks(24),
        forks(12, seed=1),
        FlipsConfig(kinds=("attention", "mlp"), rank=rank, top=3, exact=5, drawn=3, seed=0),
    )
    assert found.sites[0].sites == (str(PLANTED),)
    assert found.sites[0].restored.value == 1
    assert found.sites[0].recovered == pytest.approx(1, abs=1e-4)
    assert found.every.restored.value == 1
    assert [len(one.sites) for one in found.together] == [1, 2, 3]
    assert len(found.estimates) == 8
    assert {len(one.sites) for one in found.random} <= {3}


def test_nothing_is_measured_on_what_was_chosen_on() -> None:
    rows = forks(40)
    choose, measure = halves(rows, 0)
    ids = [row.id for row in (*choose.rows, *measure.rows)]
    assert sorted(ids) == sorted(row.id for row in rows.rows)
    assert len(choose.rows) == len(measure.rows) == 20
    assert halves(rows, 1)[0] != choose


def test_without_gains_nothing_is_lost() -> None:
    found = find(
        hybrid(), forks(16), Forks((), 0), FlipsConfig(kinds=("mlp",), rank="net", top=2, exact=4, drawn=2, seed=0)
    )
    assert found.sites[0].sites == (str(PLANTED),)
    assert found.sites[0].lost.of == 0


def explanation() -> Explanation:
    effect = SiteEffect(("mlp.1",), Share(3, 5, 0.2, 0.9), Share(0, 0, 0.0, 1.0), 0.7)
    every = SiteEffect(("mlp.0", "mlp.1"), Share(5, 5, 0.5, 1.0), Share(0, 0, 0.0, 1.0), 1.0)
    return Explanation(
        "old", "new", "task", "test", ("1", "2"), {"top": 1}, 12, 10, 4, 1, 5, every, {"mlp.0": -0.1, "mlp.1": 0.8},
        (effect,), (effect,), (effect, effect), (Edge("mlp.0", "mlp.1", 0.4),), 2, 4,
    )  # fmt: skip


def test_an_explanation_is_read_as_it_was_written(tmp_path: Path) -> None:
    explanation().save(tmp_path)
    assert load_explanation(tmp_path) == explanation()
    text = str(explanation())
    assert "mlp.1" in text
    assert "left out: 1" in text
    assert "10 of 12 negative flips" in text
    assert "gains lost" in text
    assert "none there" in text
    assert "flips of the test split" in text
    assert "flips of the test split" not in str(replace(explanation(), split="validation"))


def test_what_is_no_explanation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no explanation.json"):
        load_explanation(tmp_path)
    good = explanation().to_dict()
    for wrong in ({"sites": []}, good | {"format": 0}, good | {"estimates": {"mlp.9": 1.0}}, good | {"more": 1},
                  good | {"estimates": {"mlp.0": None}}, good | {"estimates": {"<b>": 1.0}}, []):  # fmt: skip
        (tmp_path / "explanation.json").write_text(json.dumps(wrong))
        with pytest.raises(CorruptError, match="is not an explanation"):
            load_explanation(tmp_path)


def test_random_sites_count_once_and_may_be_too_few() -> None:
    def found(kinds: tuple[Kind, ...], top: int) -> Found:
        return find(
            hybrid(),
            forks(16),
            forks(8, seed=1),
            FlipsConfig(kinds=kinds, rank="distance", top=top, exact=12, drawn=2, seed=0),
        )

    groups = [frozenset(one.sites) for one in found(("mlp",), 1).random]
    assert len(groups) == len(set(groups)) <= 3
    assert found(("mlp",), 3).random == ()


def test_a_block_ends_with_its_residual_stream() -> None:
    order = ["query.3.0", "head.3.1", "attention.3", "hidden.3", "mlp.3", "residual.3", "query.4.0"]
    depths = [_depth(parse_site(site))[:2] for site in order]
    assert depths == sorted(set(depths))
