from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uphold.core.errors import CorruptError, DataError, EmptyError, UpholdError, UsageError
from uphold.core.hashing import sha256_of_file
from uphold.core.progress import silent
from uphold.tasks import bigbench_archive as archive
from uphold.tasks.base import SPLITS, FixedTask, Instance, split_sizes, task_fingerprint
from uphold.tasks.bigbench import bigbench_task
from uphold.tasks.load import load_task

CHOICES = {"red": 0, "green": 1, "blue": 0}


def choice_examples(count: int = 20) -> list[dict[str, Any]]:
    return [{"input": f"What colour is leaf {n}?", "target_scores": CHOICES} for n in range(count)]


def text_examples(count: int = 20) -> list[dict[str, Any]]:
    return [{"input": f"{n} + 1 =", "target": str(n + 1)} for n in range(count)]


def write_task(folder: Path, examples: Any = None, metric: str | None = None, **changes: Any) -> Path:
    """A task.json: a choice among colours, or what `changes` makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "canary": "not for training",
        "name": folder.name,
        "description": "a test",
        "keywords": ["test"],
        "metrics": [metric or "multiple_choice_grade"],
        "preferred_score": metric or "multiple_choice_grade",
        "examples": choice_examples() if examples is None else examples,
        **changes,
    }
    path = folder / "task.json"
    path.write_text(json.dumps({key: value for key, value in described.items() if value != "left out"}))
    return path


def everything(task: FixedTask) -> list[Instance]:
    return [instance for split in SPLITS for instance in task.instances(split)]


def only(
    folder: Path, example: Mapping[str, Any], metric: str = "exact_str_match", **changes: Any
) -> tuple[FixedTask, Instance]:
    task = bigbench_task(str(write_task(folder, [example], metric, **changes)))
    (instance,) = everything(task)
    return task, instance


# ---- prompts ----


def test_a_choice_is_asked_as_the_schema_says(tmp_path: Path) -> None:
    task, instance = only(tmp_path, choice_examples(1)[0], "multiple_choice_grade")

    # The reference implementation: RandomState(42).permutation of the sorted choices, anew for every example.
    order = np.random.RandomState(seed=42).permutation(sorted(CHOICES))
    assert (
        instance.prompt == "\nQ: What colour is leaf 0?" + "".join(f"\n  choice: {choice}" for choice in order) + "\nA:"
    )
    assert task.delimiter == " "
    assert instance.options == ("red", "green", "blue")
    assert instance.target == "green"
    assert (task.kind, task.metric, task.scorer) == ("choice", "acc", "bigbench.multiple_choice_grade.v1")


@pytest.mark.parametrize(
    ("changes", "prompt", "delimiter"),
    [
        ({}, "\nQ: 0 + 1 =\nA:", " "),
        ({"example_input_prefix": "", "example_output_prefix": " "}, "0 + 1 =", " "),
        ({"example_input_prefix": "Sum: ", "example_output_prefix": ""}, "Sum: 0 + 1 =", ""),
        ({"example_output_prefix": "\n"}, "\nQ: 0 + 1 =\n", ""),
        ({"example_output_prefix": "\n "}, "\nQ: 0 + 1 =\n ", ""),
        ({"task_prefix": "Add. "}, "Add. \nQ: 0 + 1 =\nA:", " "),
        ({"task_prefix": None}, "\nQ: 0 + 1 =\nA:", " "),
    ],
)
def test_prefixes_surround_the_input(tmp_path: Path, changes: dict[str, Any], prompt: str, delimiter: str) -> None:
    task, instance = only(tmp_path, text_examples(1)[0], **changes)

    assert (instance.prompt, task.delimiter) == (prompt, delimiter)


def test_choices_are_left_away_where_the_task_says_so(tmp_path: Path) -> None:
    example = choice_examples(1)[0]

    assert only(tmp_path, example, "multiple_choice_grade", append_choices_to_input=False)[1].prompt == (
        "\nQ: What colour is leaf 0?\nA:"
    )
    changed = only(tmp_path, example, "multiple_choice_grade", choice_prefix=" | ")[1].prompt
    assert changed.count(" | ") == 3


def test_choices_are_also_shown_where_an_answer_is_written(tmp_path: Path) -> None:
    task, instance = only(tmp_path, choice_examples(1)[0] | {"target": "green"})

    assert task.kind == "generate"
    assert instance.prompt.count("\n  choice: ") == 3
    assert instance.options == ()


def test_all_questions_share_one_header_of_exemplars(tmp_path: Path) -> None:
    path = str(
        write_task(tmp_path, text_examples(), "exact_str_match", task_prefix="Add.", few_shot_example_separator="\n\n")
    )
    task = bigbench_task(path, shots=3)
    instances = everything(task)
    headers = {instance.prompt.rsplit("\nQ:", 1)[0] for instance in instances}

    (header,) = headers
    assert header.startswith("Add.\nQ: ")
    assert header.count("\nQ: ") == header.count("\nA: ") == 3
    assert header.endswith("\n\n")
    shown = [int(line.split()[1]) for line in header.splitlines() if line.startswith("Q: ")]
    assert [int(line.split()[1]) for line in header.splitlines() if line.startswith("A: ")] == [n + 1 for n in shown]
    assert sorted(shown + [int(instance.target) - 1 for instance in instances]) == list(range(20))
    assert everything(bigbench_task(path, shots=3)) == instances
    assert everything(bigbench_task(path, shots=3, seed=1)) != instances


def test_an_exemplar_of_a_choice_shows_its_best_option(tmp_path: Path) -> None:
    examples = [example | {"target": "Green, since leaves are."} for example in choice_examples()]
    task = bigbench_task(str(write_task(tmp_path, examples)), shots=2)

    assert task.instances("test")[0].prompt.count("\nA: green\n") == 2


# ---- splits ----


def test_splits_share_nothing_and_follow_the_content(tmp_path: Path) -> None:
    task = bigbench_task(str(write_task(tmp_path / "a", text_examples(100), "exact_str_match")))
    backwards = bigbench_task(str(write_task(tmp_path / "b", text_examples(100)[::-1], "exact_str_match")))

    assert split_sizes(task) == {"train": 60, "validation": 10, "test": 30}
    assert len({instance.id for instance in everything(task)}) == 100
    assert everything(task) == everything(backwards)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"limit": 10}, (6, 1, 3)),
        ({"test": 50}, (43, 7, 50)),
        ({"train": 0, "validation": 0}, (0, 0, 100)),
        ({"train": 5, "validation": 5, "test": 5}, (5, 5, 5)),
        ({"shots": 10}, (54, 9, 27)),
        ({"limit": 1}, (0, 0, 1)),
    ],
)
def test_sizes(tmp_path: Path, options: dict[str, int], sizes: tuple[int, int, int]) -> None:
    task = bigbench_task(str(write_task(tmp_path, text_examples(100), "exact_str_match")), **options)

    assert tuple(split_sizes(task).values()) == sizes


def test_a_larger_train_split_or_more_shots_leave_the_test_split_alone(tmp_path: Path) -> None:
    path = str(write_task(tmp_path, text_examples(100), "exact_str_match"))
    plain = bigbench_task(path, test=20, train=10, validation=0).instances("test")

    assert bigbench_task(path, test=20, train=70, validation=0).instances("test") == plain
    with_header = bigbench_task(path, test=20, shots=3).instances("test")
    assert [instance.target for instance in with_header] == [instance.target for instance in plain]


def test_what_runs_are_compared_by_does_not_depend_on_other_splits(tmp_path: Path) -> None:
    examples = [{"input": str(n), "target": ["x" * n, "y"]} for n in range(1, 100)]
    path = str(write_task(tmp_path, examples, "exact_str_match"))
    few, many = (bigbench_task(path, test=20, train=train, validation=0) for train in (5, 79))

    assert task_fingerprint(few, "test") == task_fingerprint(many, "test")
    assert few.decoding.max_new_tokens == 99


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    task = bigbench_task(str(write_task(tmp_path, text_examples(9) + text_examples(2), "exact_str_match")))

    assert sum(split_sizes(task).values()) == 9
    assert task.notes == ("2 examples were left out: duplicates",)


def test_examples_that_cannot_be_asked_are_left_out_and_counted(tmp_path: Path) -> None:
    odd = [
        {"input": "one", "target_scores": {"a": 1}},
        {"input": "empty", "target_scores": {"": 1, "b": 0}},
        {"input": "same", "target_scores": {"a": 1, "b": 1}},
    ]
    task = bigbench_task(str(write_task(tmp_path, choice_examples(5) + odd)))

    assert sum(split_sizes(task).values()) == 5
    assert task.notes == (
        "1 examples were left out: fewer than two options",
        "1 examples were left out: an empty option",
        "1 examples were left out: no option is better than the others",
    )


# ---- scores ----


def test_any_of_the_best_options_is_right(tmp_path: Path) -> None:
    task, instance = only(
        tmp_path, {"input": "x", "target_scores": {"a": 0.5, "b": 1, "c": 1, "d": 0}}, "multiple_choice_grade"
    )

    assert instance.target == "b"
    assert task.score_all([instance] * 4, ["a", "b", "c", "d"]) == [
        ("a", False, 0.5), ("b", True, 1.0), ("c", True, 1.0), ("d", False, 0.0)
    ]  # fmt: skip
    assert task.scorer.startswith("bigbench.multiple_choice_grade.v1-")


@pytest.mark.parametrize(
    ("changes", "target", "output", "answer", "correct"),
    [
        ({}, "13", " 13\n", "13", True),
        ({}, "13", "13. And so on", "13", True),
        ({}, "13", "31", "31", False),
        ({}, "a  b", "a b", "a b", True),
        ({}, ["x", "y"], "y", "y", True),
        ({"output_regex": r"[-+]?\d+"}, "-4", "it is -4 or 5", "-4", True),
        ({"output_regex": r"[-+]?\d+"}, "-4", "nothing", "", False),
        ({"output_regex": r"([-+]?\d+)[.]{0,1}$"}, "7", "7.", "7", True),
        ({"output_regex": ""}, "a. b", "a. b", "a. b", True),
        ({"stop_string": "#"}, "Rg5#", "Rg5", "Rg5", True),
        ({"stop_string": "."}, "ello", "ello. More", "ello", True),
    ],
)
def test_exact_matches(
    tmp_path: Path, changes: dict[str, Any], target: Any, output: str, answer: str, correct: bool
) -> None:
    task, instance = only(tmp_path, {"input": "x", "target": target}, **changes)

    assert task.score_all([instance], [output]) == [(answer, correct, float(correct))]


@pytest.mark.parametrize(
    ("metric", "target", "output", "correct", "score"),
    [
        ("case_insensitive_str_match", "Paris", "paris", True, 1.0),
        ("numeric_match_with_0_1_relative_error", "10", "11", True, 1.0),
        ("numeric_match_with_0_1_relative_error", "10", "12", False, 0.0),
        ("numeric_match_with_0_1_relative_error", "-10", "5", False, 0.0),
        ("numeric_match_with_0_1_relative_error", "0", "0.05", True, 1.0),
        ("numeric_match_with_0_1_relative_error", "10", "ten", False, 0.0),
        ("rouge1", ["a b c d", "x"], "a b", None, 2 / 3),
        ("rouge2", "a b c", "a b", None, 2 / 3),
        ("rougeLsum", "a b c d", "a c", None, 2 / 3),
        ("rougeLsum", "runs", "running", None, 0.0),
    ],
)
def test_other_metrics(
    tmp_path: Path, metric: str, target: Any, output: str, correct: bool | None, score: float
) -> None:
    task, instance = only(tmp_path, {"input": "x", "target": target}, metric, output_regex="")

    (found,) = task.score_all([instance], [output])
    assert found.correct is correct
    assert found.score == pytest.approx(score)


def test_the_scorers_name_tells_what_the_ids_do_not(tmp_path: Path) -> None:
    def name(target: Any, **changes: Any) -> str:
        return only(tmp_path, {"input": "x", "target": target}, **changes)[0].scorer

    assert name("a") == name("b") == "bigbench.exact_str_match.v1"
    names = {name("a"), name(["a", "b"]), name(["a", "c"]), name("a", output_regex="x"), name("a", stop_string="x")}
    assert len(names) == 5


def test_a_metric_may_be_chosen(tmp_path: Path) -> None:
    examples = [example | {"target": "Green. They are."} for example in choice_examples()]
    path = str(write_task(tmp_path, examples, metrics=["multiple_choice_grade", "rouge"]))

    assert bigbench_task(path).kind == "choice"
    written = bigbench_task(path, metric="rougeLsum")
    assert (written.kind, written.scorer) == ("generate", "bigbench.rougeLsum.v1")
    assert written.instances("test")[0].target == "Green. They are."


def test_answers_that_the_tasks_own_rules_cut_are_counted(tmp_path: Path) -> None:
    examples = [{"input": "x", "target": "a; b"}, {"input": "y", "target": "a"}]
    task = bigbench_task(str(write_task(tmp_path, examples, "exact_str_match")))

    assert task.notes == ("1 of 2 gold answers are cut by the task's own rules, so no model can give them",)


@pytest.mark.parametrize(
    ("changes", "options", "stop", "tokens"),
    [
        ({}, {}, ("\n",), 16),
        ({}, {"max_new_tokens": 5}, ("\n",), 5),
        ({"stop_string": "#"}, {}, ("#",), 16),
        ({"examples": [{"input": "x", "target": "a\n" * 20}]}, {}, (), 40),
        ({"examples": [{"input": "x", "target": "a" * 999}]}, {}, ("\n",), 256),
    ],
)
def test_decoding(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, int], stop: tuple[str, ...], tokens: int
) -> None:
    path = write_task(tmp_path, **{"examples": text_examples(), "metric": "exact_str_match"} | changes)
    decoding = bigbench_task(str(path), **options).decoding

    assert (decoding.stop, decoding.max_new_tokens) == (stop, tokens)


# ---- folders of subtasks ----


def container(folder: Path, **second: Any) -> str:
    write_task(folder, "left out", metrics="left out", preferred_score="left out")
    write_task(folder / "one", text_examples(20), "exact_str_match")
    write_task(folder / "two", **{"examples": text_examples(30), "metric": "exact_str_match"} | second)
    return str(folder)


def test_a_folder_of_subtasks_is_one_task(tmp_path: Path) -> None:
    task = load_task(f"bigbench:{container(tmp_path)}:shots=2")
    instances = everything(task)  # type: ignore[arg-type]

    assert len(instances) == 26
    assert {instance.tags["subtask"] for instance in instances} == {"one", "two"}
    assert task.notes == ("20 examples were left out: other parts have them, too",)


def test_a_prefix_tells_questions_apart(tmp_path: Path) -> None:
    task = bigbench_task(container(tmp_path, task_prefix="Once more: "), shots=1)

    assert len(everything(task)) == 20 + 30 - 2
    for instance in everything(task):
        assert instance.prompt.startswith("Once more: ") == (instance.tags["subtask"] == "two")
        assert instance.prompt.count("Once more: ") <= 1
    assert task.notes == ()


def test_subtasks_have_headers_of_their_own(tmp_path: Path) -> None:
    examples = [{"input": f"{n} - 1 =", "target": str(n - 1)} for n in range(20)]
    task = bigbench_task(container(tmp_path, examples=examples), shots=2)

    for instance in everything(task):
        sign = {"one": "+", "two": "-"}[instance.tags["subtask"]]
        assert instance.prompt.count(f" {sign} 1 =") == 3
    assert {instance.tags["subtask"] for instance in task.instances("test")} == {"one", "two"}


def test_subtasks_that_prefer_different_metrics_are_not_mixed(tmp_path: Path) -> None:
    folder = container(tmp_path, examples=choice_examples(), metric="multiple_choice_grade")

    with pytest.raises(UsageError, match=r"prefer exact_str_match and .*: choose one part, as .*/one, or one metric="):
        bigbench_task(folder)
    assert bigbench_task(f"{folder}/two").kind == "choice"


# ---- what cannot be used ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "bleu"}, "prefers bleu, which is computed over a whole corpus: add metric=multiple_choice_grade"),
        ({"metric": "rouge"}, "is three metrics: rouge1, rouge2 and rougeLsum"),
        ({"metric": "nonsense"}, "is not a metric of BIG-bench"),
        ({"metric": "rouge1"}, "metric 'rouge1' needs examples with a target, which .*task.json has none of"),
        ({"examples": text_examples()}, "metric 'multiple_choice_grade' needs examples with target_scores"),
        ({"examples": [{"target_scores": CHOICES}]}, r"task\.json example 1: expected a text 'input', found NoneType"),
        ({"examples": [{"input": "x", "target_scores": {"a": 2, "b": 0}}]}, "'a' has the score 2; scores lie in"),
        ({"examples": [{"input": "x", "target_scores": ["a"]}]}, "expected 'target_scores' as options with numbers"),
        ({"examples": [{"input": "x", "target": {}}], "metric": "rouge1"}, "expected a text 'target' or a list"),
        ({"examples": [{"input": "x", "target": []}], "metric": "rouge1"}, "expected a text 'target' or a list"),
        ({"examples": []}, r"needs examples with target_scores|has 0 examples"),
        ({"examples": "x"}, "examples: input should be a valid list; expected the schema"),
        ({"output_regex": "("}, r"output_regex '\(' is no regular expression"),
        ({"output_regex": "(a)(b)"}, r"has 2 groups; use non-capturing ones, \(\?:\.\.\.\)"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UpholdError, match=message) as caught:
        bigbench_task(str(write_task(tmp_path, **changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("shots=-1", "shots must be at least 0"),
        (
            "shots=20",
            "has 20 examples that can be asked, and 20 of them are to be exemplars: nothing is left; lower shots",
        ),
        ("shot=3", "unknown option 'shot': did you mean 'shots'"),
        ("shots=many", "shots: input should be a valid integer"),
        ("test=21", "21 instances are asked for and there are 20: ask for fewer"),
        ("train=-1", "train must be a whole number of at least 0, not -1"),
        ("limit=0", "limit at least 1"),
        ("metric=bleurt", "metric 'bleurt' needs a model of its own; .* can be scored by multiple_choice_grade"),
        ("max_new_tokens=0,metric=exact_str_match", "decoding needs max_new_tokens >= 1"),
        ("metric=acc", "metric 'acc' is unknown; .* can be scored by multiple_choice_grade"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, options: str, message: str) -> None:
    path = write_task(tmp_path, [example | {"target": "green"} for example in choice_examples()])

    with pytest.raises(UpholdError, match=message) as caught:
        load_task(f"bigbench:{path}:{options}")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the BIG-bench task .*none\.json: No such file"):
        bigbench_task(f"{tmp_path}/none.json")
    with pytest.raises(DataError, match=r"holds no task\.json, and no folders that do"):
        bigbench_task(str(tmp_path))
    write_task(tmp_path / "alone", "left out")
    with pytest.raises(DataError, match=r"has no examples, and .*alone has no subtasks: expected either"):
        bigbench_task(f"{tmp_path}/alone")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CorruptError, match=r"broken\.json is not valid JSON"):
        bigbench_task(f"{tmp_path}/broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"list\.json: expected a JSON object, found list"):
        bigbench_task(f"{tmp_path}/list.json")
    assert EmptyError is not DataError


# ---- the release ----


def add(members: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    members.addfile(entry, io.BytesIO(content))


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny source archive in a folder that pip is told to look in, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / archive.ARCHIVE
    root = f"bigbench-{archive.RELEASE}"
    with tarfile.open(path, "w:gz") as members:
        add(members, f"{root}/setup.py", b"raise SystemExit('nothing of the archive may be run')")
        add(members, f"{root}/PKG-INFO", b"Metadata-Version: 2.1\nName: bigbench\nVersion: 1.0.0\n")
        for name in ("colours", "many/one", "many/two"):
            content = write_task(tmp_path / "made" / name).read_bytes()
            add(members, f"{root}/bigbench/benchmark_tasks/{name}/task.json", content)
    monkeypatch.setattr(archive, "SHA256", sha256_of_file(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def test_a_task_of_the_release_is_downloaded_once(release: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    task = load_task("bigbench:colours:shots=1", lambda what, done, total, note="": seen.append(what))

    assert sum(split_sizes(task).values()) == 19
    assert "unpacking BIG-bench" in seen
    kept = sorted(
        str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*") if path.is_file()
    )
    folder = f"uphold/bigbench-{archive.RELEASE}"
    assert kept == [
        f"uphold/.bigbench-{archive.RELEASE}.lock",
        f"{folder}/colours/task.json.gz",
        f"{folder}/many/one/task.json.gz",
        f"{folder}/many/two/task.json.gz",
    ]
    release.unlink()
    assert load_task("bigbench:colours:shots=1").instances("test") == task.instances("test")
    assert load_task("bigbench:many/two").instances("test")


def test_a_name_that_is_not_in_the_release_is_suggested(release: Path) -> None:
    with pytest.raises(UsageError, match="unknown BIG-bench JSON task 'colour': did you mean 'colours'"):
        bigbench_task("colour")
    with pytest.raises(
        UsageError, match="unknown BIG-bench JSON task '9': there are 3, for example colours, many/one, many/two"
    ):
        bigbench_task("9")
    with pytest.raises(UsageError, match=r"unknown BIG-bench JSON task 'colours/\.\./many'"):
        bigbench_task("colours/../many")


def test_another_archive_than_the_pinned_one_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SHA256", "0" * 64)

    with pytest.raises(
        DataError, match=r"pip cannot download BIG-bench 1\.0\.0 \(.*\); check the network and pip's index"
    ) as caught:
        bigbench_task("colours")
    assert "\n" not in str(caught.value)
    assert not list(archive.cache_folder().glob("*.tar.gz"))


def test_without_network_the_message_says_what_to_do(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(release.parent / "nowhere"))

    with pytest.raises(
        DataError, match=r"check the network and pip's index, or put bigbench-1\.0\.0\.tar\.gz into .*uphold"
    ):
        bigbench_task("colours")


def test_an_archive_put_there_by_hand_is_used(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_download", None)
    archive.cache_folder().mkdir(parents=True)
    release.rename(archive.cache_folder() / archive.ARCHIVE)

    assert bigbench_task("colours").instances("test")
    assert not (archive.cache_folder() / archive.ARCHIVE).exists()


def test_what_an_interrupted_download_left_is_removed(release: Path) -> None:
    cache = archive.cache_folder()
    left = cache / f".bigbench-{archive.RELEASE}.abc"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    (cache / archive.ARCHIVE).write_bytes(b"half of an archive")

    assert bigbench_task("colours").instances("test")
    assert not left.exists()


def test_an_interrupted_unpacking_is_taken_up(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bigbench_task("colours")
    assert not (archive.cache_folder() / f"bigbench-{archive.RELEASE}").exists()
    assert sha256_of_file(archive.cache_folder() / archive.ARCHIVE) == archive.SHA256
    monkeypatch.setattr(gzip, "compress", compress)
    monkeypatch.setattr(archive, "_download", None)

    assert bigbench_task("colours").instances("test")


def test_two_processes_download_once(release: Path, tmp_path: Path) -> None:
    code = (
        "from uphold.tasks import bigbench_archive as archive\n"
        f"archive.SHA256 = {archive.SHA256!r}\n"
        "run = archive._run_pip\n"
        "archive._run_pip = lambda *rest: (print('pip'), run(*rest))\n"
        "seen = {}\n"
        "found = archive.release_folder(lambda what, done, total, note='': seen.setdefault(what.split()[0]))\n"
        "print(len(list(found.rglob('*.gz'))), *seen)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = "".join(process.communicate(timeout=120)[0] for process in both).split()

    assert sorted(set(printed) - {"waiting"}) == ["3", "pip", "unpacking"]
    assert (printed.count("3"), printed.count("pip"), printed.count("unpacking")) == (2, 1, 1)


@pytest.mark.parametrize(
    "name",
    [
        "../evil/task.json",
        "/tmp/evil/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/../evil/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/a/../../evil/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/a/b/c/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/.hidden/task.json",
    ],
)
def test_members_that_lead_elsewhere_are_passed_over(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made.tar.gz"
    with tarfile.open(path, "w:gz") as members:
        add(members, name, b"{}")
        link = tarfile.TarInfo(f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/link/task.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members.addfile(link)
        add(members, f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/good/task.json", b"{}")

    archive.unpack(path, tmp_path / "out" / "release", silent)

    assert [str(found.relative_to(tmp_path / "out")) for found in (tmp_path / "out").rglob("*.gz")] == [
        "release/good/task.json.gz"
    ]
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00"])
def test_an_archive_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "made.tar.gz").write_bytes(content)

    with pytest.raises(CorruptError, match=r"remove it and type the same command again") as caught:
        archive.unpack(tmp_path / "made.tar.gz", tmp_path / "release", silent)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "release").exists()


def test_a_missing_pip_says_what_to_do(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))

    with pytest.raises(
        UsageError, match=r"pip, which is missing: python -m ensurepip, or put bigbench-1\.0\.0\.tar\.gz into"
    ):
        bigbench_task("colours")
