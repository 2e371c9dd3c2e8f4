from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import make_record, make_run
from uphold.core.runs import Run
from uphold.measure import discover as module
from uphold.measure.discover import Rule, look_for_rules

WORDS = [f"w{number}" for number in range(300)]


def prompts(generator: np.random.Generator, count: int) -> list[str]:
    return [" ".join(generator.choice(WORDS, 12)) for _ in range(count)]


def two_runs(folder: Path, flips: Sequence[bool], fields: Callable[[int], dict[str, Any]]) -> tuple[Run, Run]:
    """Runs of an old model that is always right and a new one that is wrong where `flips` says so."""
    old = [make_record(number, True, "x", **fields(number)) for number in range(len(flips))]
    new = [make_record(number, not flip, "x", **fields(number)) for number, flip in enumerate(flips)]
    return make_run(folder / "old", old, "old"), make_run(folder / "new", new, "new")


def rules(old: Run, new: Run, **options: Any) -> tuple[Rule, ...]:
    return look_for_rules(old, new, **options).rules


def test_two_per_cent_of_the_prompts_of_one_customer_are_found(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = prompts(generator, 1500)
    customers = generator.integers(0, 50, 1500)
    flips = generator.random(1500) < np.where(customers == 7, 0.5, 0.02)

    found = rules(
        *two_runs(tmp_path, flips, lambda n: {"input": texts[n], "tags": {"customer": f"c{customers[n]}"}}), draws=199
    )

    assert len(found) == 1
    rule = found[0]
    inside = customers == 7
    assert rule.conditions == ("customer is c7",)
    assert (rule.count, rule.negative_flips) == (inside.sum(), flips[inside].sum())
    assert rule.nfr == pytest.approx(flips[inside].mean())
    assert rule.nfr_rest == pytest.approx(flips[~inside].mean())
    assert rule.p == 1 / 200
    assert rule.sample is None


def test_a_word_is_found_without_any_tag(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    texts = [
        text + (" and is NOT so" if generator.random() < 0.1 else " and is so") for text in prompts(generator, 800)
    ]
    flips = [bool(generator.random() < (0.4 if "NOT" in text else 0.02)) for text in texts]

    found = rules(*two_runs(tmp_path, flips, lambda n: {"input": texts[n]}), draws=199)

    assert found[0].conditions in {("input has a word in capitals",), ("input has the word 'not'",)}
    assert len(found) == 1


def test_the_next_rule_says_something_new(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    group, lang = generator.integers(0, 10, 1500), generator.integers(0, 8, 1500)
    flips = generator.random(1500) < np.where(group == 3, 0.5, np.where(lang == 5, 0.25, 0.01))
    # A second name for nearly the same instances as group 3
    twin = np.where(generator.random(1500) < 0.95, group, 0)

    found = rules(
        *two_runs(
            tmp_path,
            flips,
            lambda n: {"input": "q", "tags": {"group": f"{group[n]}", "lang": f"{lang[n]}", "twin": f"{twin[n]}"}},
        ),
        draws=199,
    )

    assert [rule.conditions for rule in found] == [("group is 3",), ("lang is 5",)]


def test_random_flips_make_no_rule(tmp_path: Path) -> None:
    false = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        texts = prompts(generator, 200)
        flips = generator.random(200) < 0.15
        folder = tmp_path / str(seed)
        folder.mkdir()
        runs = two_runs(folder, flips, lambda n: {"input": texts[n], "tags": {"k": str(n % 7)}})  # noqa: B023
        false += bool(rules(*runs, draws=39))
    # P(more than 4 of 20 at a true rate of 0.05) is 0.3%
    assert false <= 4


def test_the_same_seed_finds_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    flips = generator.random(400) < np.where(np.arange(400) % 8 == 0, 0.3, 0.05)
    runs = two_runs(tmp_path, flips, lambda n: {"input": "q", "tags": {"k": str(n % 8)}})

    assert rules(*runs, draws=99, seed=5) == rules(*runs, draws=99, seed=5) != ()


@pytest.mark.parametrize("flips", [0, 4, 60])
def test_too_few_flips_or_nothing_else_no_rules(tmp_path: Path, flips: int) -> None:
    runs = two_runs(tmp_path, [n < flips for n in range(60)], lambda n: {"input": f"{n % 2}"})

    found = look_for_rules(*runs)

    assert (found.rules, found.instances, found.flips) == ((), 60, flips)


def test_falls_of_a_continuous_score_are_flips(tmp_path: Path) -> None:
    def run(name: str, fall: float) -> Run:
        records = [
            make_record(n, None, "x", 0.8 - (fall if n % 10 == 0 else 0.0), input="q", tags={"k": str(n % 10)})
            for n in range(300)
        ]
        return make_run(tmp_path / name, records, name)

    (rule,) = rules(run("old", 0.0), run("new", 0.3), draws=99)

    assert (rule.conditions, rule.count, rule.negative_flips) == (("k is 0",), 30, 30)
    assert (rule.nfr, rule.nfr_rest) == (1.0, 0.0)


def test_many_instances_are_sampled_and_the_rule_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_INSTANCES", 500)
    monkeypatch.setattr(module, "MOST_FLIPS", 60)
    generator = np.random.default_rng(6)
    flips = generator.random(3000) < np.where(np.arange(3000) % 10 == 0, 0.5, 0.02)
    runs = two_runs(tmp_path, flips, lambda n: {"input": "q", "tags": {"k": str(n % 10)}})

    found = look_for_rules(*runs, draws=99)

    (rule,) = found.rules
    assert found.flips == 60
    assert rule.sample == found.instances == 500
    assert rule.count == pytest.approx(300, rel=0.3)
    assert rule.nfr == pytest.approx(flips[::10].mean(), rel=0.3)
    total = int(flips.sum())
    assert found.notes == (f"60 of {total} flips and 440 of {3000 - total:,} other instances were looked at",)
    assert look_for_rules(*runs, draws=99) == found


def test_the_beginning_that_all_prompts_share_is_no_condition(tmp_path: Path) -> None:
    runs = two_runs(
        tmp_path,
        [n % 4 == 0 for n in range(200)],
        lambda n: {"input": f"Is it red or tan? Here {'red' if n % 4 == 0 else 'tan'} wins"},
    )

    (rule,) = rules(*runs, draws=99)

    assert rule.conditions == ("input starts with 'red'",)


def test_of_a_long_prompt_the_end_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TEXT", 20)
    runs = two_runs(
        tmp_path,
        [n % 5 == 0 for n in range(100)],
        lambda n: {"input": f"{n} " + "word " * 20 + ("red" if n % 5 == 0 else "sea")},
    )

    found = look_for_rules(*runs, draws=99)

    assert "'red'" in found.rules[0].conditions[0]
    assert "of 100 prompts only the last 20 characters were looked at" in found.notes


def test_the_marks_of_a_language_model_do_no_harm(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", "\u202e\u0000'; DROP TABLE pairs; --", "{0}{name}%s", "漢字" * 50, ""]
    runs = two_runs(
        tmp_path,
        [n % 3 == 0 for n in range(100)],
        lambda n: {"input": texts[n % 5] + f" {n % 3}", "tags": {"{x}\n": texts[n % 5]}},
    )

    for rule in rules(*runs, draws=99):
        assert all("\n" not in condition for condition in rule.conditions)


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"most": -1}, {"minimum": 0}, {"alpha": 1.0}, {"draws": 10}])
def test_arguments_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    runs = two_runs(tmp_path, [True, False], lambda n: {})

    with pytest.raises(ValueError, match="need depth"):
        rules(*runs, **wrong)
