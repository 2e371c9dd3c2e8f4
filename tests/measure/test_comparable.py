from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_record, make_run
from uphold.core.errors import NotComparableError
from uphold.core.records import Record
from uphold.core.runs import Run, write_run
from uphold.measure.comparable import check_comparable


def run_of(folder: Path, records: list[Record], **changes: Any) -> Run:
    """A run whose fingerprint has these entries instead of the usual ones."""
    base = make_run(folder / "base", records).fingerprint
    return write_run(folder / "changed", records, {**base, **changes})


def two_records() -> list[Record]:
    return [make_record(1, True, "a"), make_record(2, False, "b")]


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "model")
    copy = old.copy_to(tmp_path / "copy")

    with pytest.raises(NotComparableError, match="one and the same run") as caught:
        check_comparable(old, copy)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("field", "theirs"),
    [
        ("instances", "other"),
        ("scorer", "exact.v1"),
        ("kind", "generate"),
        ("split", "validation"),
        ("delimiter", ""),
        ("decoding", {"max_new_tokens": 8}),
    ],
)
def test_runs_that_were_asked_differently_are_not_comparable(tmp_path: Path, field: str, theirs: Any) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", two_records(), "new", **{field: theirs})

    with pytest.raises(NotComparableError, match=rf"they differ in {field}[. ]") as caught:
        check_comparable(old, new)
    assert "\n" not in str(caught.value)


def test_every_differing_field_is_named(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", two_records(), "new", scorer="exact.v1", split="train")

    with pytest.raises(
        NotComparableError, match=r"scorer \(choice.v1 against exact.v1\), split \(test against train\)"
    ):
        check_comparable(old, new)


def test_the_name_of_a_task_does_not_count(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", two_records(), "new")
    renamed = write_run(
        tmp_path / "renamed", two_records(), {**new.fingerprint, "task": {**new.fingerprint["task"], "name": "other"}}
    )

    assert check_comparable(old, renamed) == []


def test_other_numerics_are_remarked_on(tmp_path: Path) -> None:
    model = {"name": "old", "weights": "w1", "dtype": "float32"}
    old = run_of(tmp_path / "a", two_records(), model=model, versions={"torch": "2.12.0"})
    new = run_of(
        tmp_path / "b",
        two_records(),
        model=model | {"weights": "w2", "dtype": "bfloat16"},
        batching={"size": 8},
        versions={"torch": "2.13.0"},
    )

    assert check_comparable(old, new) == [
        "the runs differ in model.dtype: float32 (old) against bfloat16 (new)",
        "the runs differ in batching.size: 32 (old) against 8 (new)",
        "the runs differ in versions.torch: 2.12.0 (old) against 2.13.0 (new)",
    ]


def test_nested_settings_are_named_by_their_path(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old", decoding={"max_new_tokens": 8, "stop": ["a"]})
    new = make_run(tmp_path / "new", two_records(), "new", decoding={"max_new_tokens": 16, "stop": ["a"], "top_p": 0.5})

    with pytest.raises(NotComparableError) as caught:
        check_comparable(old, new)
    assert "they differ in decoding.max_new_tokens (8 against 16), decoding.top_p (not set against 0.5):" in str(
        caught.value
    )


def test_hashes_and_long_values_are_kept_short(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old", instances="ab" * 32, system="be kind " * 50)
    new = make_run(tmp_path / "new", two_records(), "new", instances="cd" * 32, system="be kind " * 49 + "be quick")

    with pytest.raises(NotComparableError) as caught:
        check_comparable(old, new)
    assert "they differ in instances (differs), system (differs):" in str(caught.value)


def test_what_is_allowed_to_differ_becomes_a_note(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old", shots=0)
    new = make_run(tmp_path / "new", two_records(), "new", shots=5, split="train")

    assert check_comparable(old, new, allow_mismatch=True) == [
        "mismatch allowed: shots (0 against 5)",
        "mismatch allowed: split (test against train)",
    ]


def test_the_same_run_is_refused_even_where_mismatches_are_allowed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", two_records(), "model")

    with pytest.raises(NotComparableError, match="one and the same run"):
        check_comparable(run, run, allow_mismatch=True)


# ---- runs read from other tools' logs ----


def log(folder: Path, name: str, records: list[Record], prompts: str, versions: dict[str, str] | None = None) -> Run:
    task = {"name": "arc", "format": "lm-eval", "num_fewshot": 0, "prompts": prompts}
    fingerprint = {"model": {"name": name, "log": name}, "task": task, "batching": {}, "seed": 0}
    return write_run(folder / name, records, {**fingerprint, "versions": versions or {}})


def test_other_prompts_are_counted_with_an_example(tmp_path: Path) -> None:
    old = log(tmp_path, "old", [make_record(n, True, "a") for n in range(4)], "a" * 64)
    asked = [
        make_record(n, True, "a", input=f"Please: question {n}" if n in (1, 2) else f"question {n}") for n in range(4)
    ]
    new = log(tmp_path, "new", asked, "b" * 64)

    with pytest.raises(NotComparableError) as caught:
        check_comparable(old, new)
    assert "they differ in prompts (2 of 4 shared instances were asked with another prompt, e.g. 00000000…): " in str(
        caught.value
    )


def test_prompt_hashes_that_differ_by_missing_instances_say_so(tmp_path: Path) -> None:
    old = log(tmp_path, "old", [make_record(n, True, "a") for n in (1, 2, 3)], "a" * 64)
    new = log(tmp_path, "new", [make_record(n, True, "a") for n in (2, 3)], "b" * 64)

    (note,) = check_comparable(old, new, allow_mismatch=True)
    assert note == (
        "mismatch allowed: prompts (0 of 2 shared instances were asked with another prompt; "
        "1 instances are in one run only)"
    )


def test_versions_of_the_other_tool_take_one_line(tmp_path: Path) -> None:
    old = log(tmp_path, "old", two_records(), "a", {"lm_eval": "0.4.12", "transformers": "5.1"})
    new = log(tmp_path, "new", two_records(), "a", {"lm_eval": "0.4.13", "transformers": "5.2"})

    assert check_comparable(old, new) == [
        "the logs differ in versions.lm_eval (0.4.12 against 0.4.13), versions.transformers (5.1 against 5.2)"
    ]
