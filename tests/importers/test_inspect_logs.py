from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.importers.inspect_logs import header, members, sample, write_eval, write_json_log
from uphold.core.errors import DataError, EmptyError, NotComparableError, UsageError
from uphold.core.runs import Run
from uphold.importers import import_log, is_log
from uphold.measure.comparison import compare_runs


def write(path: Path, samples: list[dict[str, Any]], **changes: Any) -> Path:
    return write_eval(path, members(samples, header(**changes)))


def records(path: Path, **options: Any) -> dict[str, Any]:
    [run] = import_log(path, **options)
    return {record.output.removeprefix("say "): record for record in run.records()}


def notes(run: Run) -> list[str]:
    return list(run.fingerprint["log"]["notes"])


@pytest.mark.filterwarnings("ignore")
def test_inspect_itself_reads_what_we_read(tmp_path: Path) -> None:
    """Our fixture is in its layout, and its own writer's files are read the same way."""
    log_module = pytest.importorskip("inspect_ai.log")
    key = "ab" * 16
    samples = [
        sample("a", "C"),
        sample("b/ c", "I"),
        sample(3, "P"),
        sample("n", float("nan")),
        sample(
            "long", "C", input=[{"role": "user", "content": f"attachment://{key}"}], attachments={key: "a long text"}
        ),
    ]
    ours = write(tmp_path / "ours.eval", samples)
    seen = log_module.read_eval_log(str(ours))
    log_module.write_eval_log(seen, str(tmp_path / "theirs.eval"), format="eval")
    log_module.write_eval_log(seen, str(tmp_path / "theirs.json"), format="json")
    found = [records(tmp_path / name) for name in ("ours.eval", "theirs.eval", "theirs.json")]
    assert found[0] == found[1] == found[2]
    resolved = log_module.read_eval_log(str(ours), resolve_attachments=True)
    for one in resolved.samples:
        record = found[0][str(one.id)]
        score = one.scores["match"]
        asked = one.input if isinstance(one.input, str) else f"user: {one.input[0].text}"
        assert (record.input, record.output, record.answer) == (asked, one.output.completion, score.answer)
        assert record.score == {"C": 1, "I": 0, "P": 0.5, "N": 0}.get(str(score.value))
        assert record.tokens == one.model_usage["mockllm/old"].total_tokens
    assert found[0]["long"].input == "user: a long text"


def test_judgements(tmp_path: Path) -> None:
    values = {"right": "C", "wrong": "I", "part": "P", "none": "N", "yes": True, "no": False, "one": 1, "half": 0.25}
    values |= {"nan": float("nan"), "word": "0.75"}
    samples = [sample(name, value) for name, value in values.items()]
    samples.append(sample("error", scores={}, error={"message": "time out"}))
    samples.append(sample("invalid", invalidation={"author": "me"}))
    samples.append(sample("empty", scores=None))
    path = write(tmp_path / "log.eval", samples)
    found = records(path)
    assert {name: (one.correct, one.score) for name, one in found.items()} == {
        "right": (True, 1),
        "wrong": (False, 0),
        "part": (None, 0.5),
        "none": (False, 0),
        "yes": (True, 1),
        "no": (False, 0),
        "one": (True, 1),
        "half": (None, 0.25),
        "nan": (None, None),
        "word": (None, 0.75),
        "error": (None, None),
        "invalid": (None, None),
        "empty": (None, None),
    }
    assert sorted(notes(import_log(path)[0])) == [
        "samples scored N (no answer), which count as wrong: 1",
        "samples scored NaN, left out: 1",
        "samples that ended in an error, left out: 1",
        "samples that were invalidated, left out: 1",
        "samples with partial credit (P = 0.5), for which scores are compared, not right and wrong: 1",
        "samples without a score, left out: 1",
    ]


@pytest.mark.parametrize("value", [1.5, -1, "excellent", ["C"], {"a": 1}, "inf", 10**400])
def test_scores_that_are_none(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"the score of 'match' is"):
        import_log(write(tmp_path / "log.eval", [sample("a", value)]))


def test_scorers_must_be_told_apart(tmp_path: Path) -> None:
    scorers = [{"name": "inspect_evals/match", "options": {}}, {"name": "grades", "options": {"n": 2}}]
    both = {"match": {"value": "C"}, "grades": {"value": {"style": 0.5, "fact": 1}}}
    path = write(tmp_path / "log.eval", [sample("a", scores=both)], scorers=scorers)
    with pytest.raises(UsageError, match="scored by match, grades: choose one with metric"):
        import_log(path)
    assert records(path, metric="match")["a"].correct
    assert records(path, metric="grades.style")["a"].score == 0.5
    assert import_log(path, metric="grades.fact")[0].fingerprint["task"]["scorer_options"] == {"n": 2}
    with pytest.raises(DataError, match=r"a dict and no single value; .* grades.style, grades.fact"):
        import_log(path, metric="grades")
    with pytest.raises(UsageError, match="unknown part of a score 'styl': did you mean 'style'"):
        import_log(path, metric="grades.styl")
    with pytest.raises(UsageError, match="unknown scorer 'mach': did you mean 'match'"):
        import_log(path, metric="mach")


def test_a_scorer_that_scored_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.eval", [sample("a", scores={"other": {"value": "C"}})])
    with pytest.raises(DataError, match="no sample was scored by 'match'; choose one of other"):
        import_log(path)
    with pytest.raises(EmptyError, match="inspect score"):
        import_log(write(tmp_path / "b.eval", [sample("a", scores={})], scorers=None))
    twice = [{"name": "match"}, {"name": "match"}]
    path = write(
        tmp_path / "c.eval", [sample("a", scores={"match": {"value": 1}, "match1": {"value": 0}})], scorers=twice
    )
    assert not records(path, metric="match1")["a"].correct


def test_messages_pair_without_their_random_ids(tmp_path: Path) -> None:
    def asked(number: int) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": "look"}, {"type": "image", "image": "attachment://1", "id": str(number)}]
        return [
            {"id": f"random {number}", "role": "system", "content": "be kind"},
            {"id": f"{number}", "role": "user", "content": parts},
        ]

    paths = [
        write(tmp_path / f"{n}.eval", [sample("a", input=asked(n), attachments={"1": "data"})], model=f"m/{n}")
        for n in (1, 2)
    ]
    old, new = (import_log(path)[0] for path in paths)
    assert [record.id for record in old.records()] == [record.id for record in new.records()]
    assert next(old.records()).input.startswith("system: be kind\n\nuser: look\n")
    assert compare_runs(old, new).count == 1


def test_flips_of_two_logs(tmp_path: Path) -> None:
    values = {"old": "CCCII", "new": "CIICI"}
    runs = []
    for name, letters in values.items():
        samples = [sample(n, value, input=f"question {n}") for n, value in enumerate(letters)]
        runs += import_log(
            write(tmp_path / f"{name}.eval", samples if name == "old" else samples[::-1], model=f"m/{name}")
        )
    matrix = compare_runs(*runs).matrix
    assert matrix is not None
    assert (matrix.both_right, matrix.negative_flips, matrix.positive_flips, matrix.both_wrong) == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"task_version": 3}, "version"),
        ({"dataset": {"name": "others"}}, "dataset"),
        ({"scorers": [{"name": "match", "options": {"location": "begin"}}]}, "scorer_options"),
        ({"config": {"epochs": 1, "limit": 5}}, "limit"),
        ({"model_generate_config": {"max_tokens": 5}}, "gen_kwargs"),
        ({"task_args": {"fewshot": 2}}, "task_args"),
        ({"solver_args": {"cot": True}}, "solver_args"),
    ],
)
def test_other_settings_are_not_comparable(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    [old] = import_log(write(tmp_path / "old.eval", [sample("a")]))
    [new] = import_log(write(tmp_path / "new.eval", [sample("a")], model="m/new", **changes))
    ours, theirs = old.fingerprint["task"], new.fingerprint["task"]
    assert {name for name in ours if ours[name] != theirs[name]} == {key}
    with pytest.raises(NotComparableError, match=key):
        compare_runs(old, new)


def test_how_a_model_is_reached_does_not_matter(tmp_path: Path) -> None:
    reached = {"max_connections": 5, "timeout": 3}
    [old] = import_log(write(tmp_path / "old.eval", [sample("a")]))
    [new] = import_log(write(tmp_path / "new.eval", [sample("a")], model="m/new", model_generate_config=reached))
    assert old.fingerprint["task"] == new.fingerprint["task"]


def test_epochs_are_instances_and_can_be_told_to_belong_together(tmp_path: Path) -> None:
    samples = [sample("a", "C"), {**sample("a", "I"), "epoch": 2}]
    [run] = import_log(write(tmp_path / "log.eval", samples), columns={"question": "id", "kind": "kind"})
    assert run.count == 2
    assert {record.tags["question"] for record in run.records()} == {"a"}
    assert {record.tags["kind"] for record in run.records()} == {"sum"}


def test_a_folder_of_logs(tmp_path: Path) -> None:
    write(tmp_path / "1.eval", [sample("a", "I")])
    write(tmp_path / "2.eval", [sample("a", "C")], created="2026-02-02T03:04:05+00:00")
    write_json_log(tmp_path / "deep" / "3.json", [sample("a")], header(task="other"))
    (tmp_path / "notes.json").write_text("{}")
    assert is_log(tmp_path)
    first, second = import_log(tmp_path)
    assert [run.fingerprint["task"]["name"] for run in (first, second)] == ["other", "sums"]
    assert next(second.records()).correct
    assert notes(second) == [
        "sums: the log of 2026-02-02T03:04:05+00:00 is read, older ones (2026-01-02T03:04:05+00:00) are not"
    ]
    write(tmp_path / "4.eval", [sample("a")], model="m/new")
    with pytest.raises(UsageError, match=r"2 models \(m/new, mockllm/old\)"):
        import_log(tmp_path)
    assert [run.name for run in import_log(f"{tmp_path}#new")] == ["m/new"]
    write(tmp_path / "5.eval", [sample("a")], created="2026-02-02T03:04:05+00:00")
    with pytest.raises(DataError, match="neither is newer"):
        import_log(f"{tmp_path}#old")


def test_an_evaluation_that_did_not_end_is_read_and_said(tmp_path: Path) -> None:
    parts = members([sample("a")])
    del parts["header.json"]
    [run] = import_log(write_eval(tmp_path / "log.eval", parts))
    assert notes(run) == ["sums: the evaluation did not end well (started); samples may be missing"]


def test_malformed_logs(tmp_path: Path) -> None:
    with pytest.raises(EmptyError, match="holds no samples"):
        import_log(write(tmp_path / "none.eval", []))
    with pytest.raises(DataError, match="is in the log twice"):
        import_log(write_json_log(tmp_path / "twice.json", [sample("a"), sample("a")]))
    with pytest.raises(DataError, match=r"samples/a_epoch_1.json: input.str: input should be a valid string"):
        import_log(write(tmp_path / "type.eval", [sample("a", input=5)]))
    with pytest.raises(DataError, match=r"eval: task: field required"):
        import_log(write_eval(tmp_path / "head.eval", {"header.json": json.dumps({"eval": {"model": "m"}}).encode()}))
    path = tmp_path / "list.json"
    path.write_text(json.dumps({**header(), "samples": {"a": 1}}))
    with pytest.raises(DataError, match="samples: expected a list, found dict"):
        import_log(path)
