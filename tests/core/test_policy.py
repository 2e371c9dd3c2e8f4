from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from uphold.core.errors import DataError
from uphold.core.policy import Limit, Policy, load_policy


def read(folder: Path, text: str) -> Policy:
    path = folder / "gate.yml"
    path.write_text(text)
    return load_policy(path)


def test_everything_a_policy_can_say(tmp_path: Path) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    policy = read(
        tmp_path,
        """
old: runs/old
new: org/name@main
tasks: [demo, rg:chain_sum]
alpha: 10%
cluster: passage
limits:
  - max_nfr: 2%
    margin: 0.01
    max_inconsistency: 0.05
  - task: demo*
    slice: difficulty=hard
    max_nfr: 0.05
must_keep: [0123abcd, 0000000000000012]
allowed_flips:
  - {id: 0000000000000012, expires: 2026-12-31, reason: "the gold answer is wrong"}
""",
    )
    assert (policy.old, policy.new) == (str(tmp_path / "runs" / "old"), "org/name@main")
    assert (policy.alpha, policy.cluster, policy.tasks) == (0.1, "passage", ("demo", "rg:chain_sum"))
    assert policy.limits[0].rules == {"max_nfr": 0.02, "margin": 0.01, "max_inconsistency": 0.05}
    assert (policy.limits[0].task, policy.limits[0].slice) == ("*", None)
    assert (policy.limits[1].task, policy.limits[1].slice) == ("demo*", "difficulty=hard")
    assert policy.must_keep == ("0123abcd", "0000000000000012")
    assert policy.allowed_flips[0].expires == datetime.date(2026, 12, 31)


def test_ids_are_text_even_where_yaml_sees_numbers(tmp_path: Path) -> None:
    ids = ["0000000000000010", "1234567890123456", "1_000", "0x1f", "1e5", "12:30", "true", "null", "2026-01-01"]
    assert read(tmp_path, f"must_keep: [{', '.join(ids)}]").must_keep == tuple(ids)


def test_must_keep_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("# ours\n00aa   # the tour\n\n  00bb\n")
    assert read(tmp_path, "must_keep: {file: keep.txt}").must_keep == ("00aa", "00bb")


def test_paths_are_found_beside_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "adapter"):
        (tmp_path / "gates" / name).mkdir(parents=True)
    (tmp_path / "gates" / "task.yaml").write_text("")
    (tmp_path / "gates" / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gates" / "gate.yml").write_text(
        "old: base+adapter\nnew: embedded:v1+adapter\ntasks: [task.yaml, demo, absent.yaml]\nmust_keep: [a]"
    )
    policy = load_policy("gates/gate.yml")
    assert (policy.old, policy.new) == ("gates/base+gates/adapter", "embedded:v1+gates/adapter")
    assert policy.tasks == ("gates/task.yaml", "demo", "absent.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limits:\n  - max_nrf: 2%", "line 2: unknown key 'max_nrf': did you mean 'max_nfr'?"),
        ("limit: []", "line 1: unknown key 'limit': did you mean 'limits'?"),
        ("must_keep: {fil: x}", "line 1: unknown key 'fil': did you mean 'file'?"),
        ("must_keep: [a]\nallowed_flips: [{idd: a}]", "line 2: unknown key 'idd': did you mean 'id'?"),
        ("alpha: 0.05\nlimits:\n  - max_nfr: 2", "line 3: limits.0.max_nfr: 2 is not in [0, 1]; 2% is written 2%"),
        ("limits: [{max_nfr: -1%}]", "limits.0.max_nfr: -1% is not in [0, 1]"),
        ("limits: [{max_nfr: .nan}]", "limits.0.max_nfr: nan is not in [0, 1]"),
        ("limits: [{max_nfr: yes}]", "limits.0.max_nfr: True is not a share: write 0.02 or 2%"),
        ("limits: [{max_nfr: few}]", "limits.0.max_nfr: 'few' is not a share"),
        ("limits: [{max_nfr: 0}]", "no number of instances can show that a share is 0"),
        ("limits: [{margin: 1}]", "a margin of 1 allows anything"),
        ("limits: [{equivalence: 1}]", "an equivalence of 1 allows anything"),
        (
            "limits: [{task: demo}]",
            "line 1: limits.0: a limit needs one of max_nfr, margin, equivalence, max_inconsistency",
        ),
        ("limits: 3", "limits: input should be a list"),
        ("limits: [{max_nfr: 1%, slice: 3}]", "limits.0.slice: input should be a valid string"),
        ("alpha: 0.7\nmust_keep: [a]", "line 1: alpha: 0.7 is not between 1e-12 and 0.5"),
        ("alpha: 1e-300\nmust_keep: [a]", "line 1: alpha: 1e-300 is not between 1e-12 and 0.5"),
        (f"limits:\n  - max_nfr: {'9' * 400}", "line 2: limits.0.max_nfr: 999"),
        ("limits:\n  - 5", "line 2: limits.0: expected keys with their values"),
        ("{}", "it limits nothing: give limits or must_keep"),
        ("must_keep: []", "it limits nothing"),
        ("", "is not a policy"),
        ("- 1", "is not a policy"),
        ("limits: [", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("must_keep: [a]\nalpha: 0.1\nalpha: 0.2", "line 3: the key 'alpha' stands here twice"),
        ("limits:\n - max_nfr: 1%\n   max_nfr: 2%", "line 3: the key 'max_nfr' stands here twice"),
        ("a: &a [*a]", "unknown key 'a'"),
        ("must_keep: [[a]]", "must_keep.0: input should be a valid string"),
        ("must_keep: {file: absent.txt}", "must_keep.file: cannot read"),
        ("must_keep: [a]\nallowed_flips: [{id: b, expires: 2026-12-31, reason: x}]", "'b', which is not in must_keep"),
        ("must_keep: [a]\nallowed_flips: [{id: a, expires: 2026-12-31}]", "line 2: allowed_flips.0.reason: field req"),
        ("must_keep: [a]\nallowed_flips: [{id: a, expires: 2026-13-31, reason: x}]", "is not valid YAML: month must"),
        ("must_keep: [a]\nallowed_flips: [{id: a, expires: soon, reason: x}]", "allowed_flips.0.expires: "),
        ("[" * 3000, "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert expected in message
    assert "gate.yml" in message
    assert "\n" not in message


def test_one_exception_per_instance() -> None:
    twice = {"id": "a", "expires": "2026-12-31", "reason": "x"}
    with pytest.raises(ValidationError, match="allowed_flips has 'a' twice"):
        Policy.model_validate({"must_keep": ["a"], "allowed_flips": [twice, twice]})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the policy .*absent.yml: No such file"):
        load_policy(tmp_path / "absent.yml")
    (tmp_path / "latin.yml").write_bytes(b"old: caf\xe9")
    with pytest.raises(DataError, match="is not a UTF-8 text file"):
        load_policy(tmp_path / "latin.yml")
    (tmp_path / "keep.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="there are no ids in"):
        read(tmp_path, "must_keep: {file: keep.txt}")


@given(st.floats(0.001, 100))
def test_percent_and_share_are_one(percent: float) -> None:
    assert Limit(max_nfr=f"{percent!r}%") == Limit(max_nfr=percent / 100)  # type: ignore[arg-type]
