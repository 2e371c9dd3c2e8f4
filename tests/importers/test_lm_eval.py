from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import datasets

from tests.conftest import save_tiny_model
from tests.importers.lm_eval_logs import DATE, harness_tasks, harness_writes, results, sample, write_log
from uphold.core.errors import DataError, EmptyError, NotComparableError, UsageError
from uphold.core.runs import Run
from uphold.importers import import_log, is_log
from uphold.measure.comparison import compare_runs

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def harness_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output path with the logs of two models on two tasks, as lm-eval wrote them."""
    folder = tmp_path_factory.mktemp("harness")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    tasks = harness_tasks(folder / "tasks")
    for name, seed in (("v1", 1), ("v2", 2)):
        harness_writes(folder / "out", save_tiny_model(folder / name, seed), tasks, num_fewshot=0)
    patch.undo()
    return folder / "out"


def model_folder(out: Path, name: str) -> Path:
    [found] = [child for child in out.iterdir() if child.name.endswith(name)]
    return found


def harness_results(out: Path, name: str) -> dict[str, Any]:
    [path] = model_folder(out, name).glob("results_*.json")
    return dict(json.loads(path.read_text()))


def by_task(runs: list[Run]) -> dict[str, Run]:
    return {run.fingerprint["task"]["name"]: run for run in runs}


def rate_right(run: Run) -> float:
    return sum(bool(record.correct) for record in run.records()) / run.count


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_accuracies_are_those_of_the_harness(harness_logs: Path, metric: str) -> None:
    for name in ("v1", "v2"):
        run = by_task(import_log(f"{harness_logs}#{name}", filter="strict", metric=metric))["riddles"]
        reported = harness_results(harness_logs, name)["results"]["riddles"]
        assert run.count == reported["sample_len"] == 40
        assert rate_right(run) == reported[f"{metric},none"]
        for record in run.records():
            assert (record.answer == record.target) is record.correct
            assert record.option_logprobs
            assert [len(option) for option in record.options] == [2, 2, 3]


@pytest.mark.parametrize("name", ["strict", "flexible"])
def test_generated_answers_are_those_of_the_filter(harness_logs: Path, name: str) -> None:
    run = by_task(import_log(model_folder(harness_logs, "v1"), filter=name))["sums"]
    reported = harness_results(harness_logs, "v1")["results"]["sums"]
    assert rate_right(run) == reported[f"exact_match,{name}"]
    lines = [json.loads(line) for line in next(model_folder(harness_logs, "v1").glob("samples_sums*")).open()]
    said = {line["arguments"]["gen_args_0"]["arg_0"]: line for line in lines if line["filter"] == name}
    for record in run.records():
        assert record.output == said[record.input]["resps"][0][0]
        assert record.answer == said[record.input]["filtered_resps"][0].strip()
    assert run.fingerprint["task"]["gen_kwargs"]["max_gen_toks"] == 8


def test_flips_of_two_logs_are_those_of_their_lines(harness_logs: Path) -> None:
    old, new = (by_task(import_log(f"{harness_logs}#{name}", filter="strict"))["riddles"] for name in ("v1", "v2"))
    right: list[dict[str, float]] = []
    for name in ("v1", "v2"):
        path = next(model_folder(harness_logs, name).glob("samples_riddles*"))
        right.append({line["doc_hash"]: line["acc"] for line in map(json.loads, path.open())})
    negative = sum(right[0][key] == 1 and right[1][key] == 0 for key in right[0])
    positive = sum(right[0][key] == 0 and right[1][key] == 1 for key in right[0])
    comparison = compare_runs(old, new)
    assert comparison.matrix is not None
    assert (comparison.count, comparison.matrix.negative_flips, comparison.matrix.positive_flips) == (
        40,
        negative,
        positive,
    )
    assert negative + positive > 0
    assert old.fingerprint["model"]["dtype"] == "float32"
    assert old.fingerprint["versions"]["lm_eval"]


def test_a_log_is_recognised_by_any_of_its_parts(harness_logs: Path) -> None:
    folder = model_folder(harness_logs, "v1")
    for path in (harness_logs, folder, *folder.iterdir()):
        assert is_log(path)
    for path in (harness_logs.parent / "v1", harness_logs.parent / "tasks" / "choice" / "riddles.yaml"):
        assert not is_log(path)
    [run] = import_log(next(folder.glob("samples_riddles*")))
    assert run.count == 40
    assert len(import_log(next(folder.glob("results_*")), filter="flexible")) == 2


def test_several_models_must_be_told_apart(harness_logs: Path) -> None:
    with pytest.raises(UsageError, match=r"holds 2 models \(.*v1, .*v2\): type .*#MODEL for one"):
        import_log(harness_logs)
    with pytest.raises(UsageError, match="unknown model 'v3'"):
        import_log(f"{harness_logs}#v3")


def test_several_filters_must_be_told_apart(harness_logs: Path) -> None:
    path = next(model_folder(harness_logs, "v1").glob("samples_sums*"))
    with pytest.raises(UsageError, match=r"2 filters \(flexible, strict\)"):
        import_log(path)
    with pytest.raises(UsageError, match=r"2 filters"):
        import_log(path, filter="loose")
    with pytest.raises(UsageError, match=r"unknown filter 'non': did you mean 'none'"):
        import_log(next(model_folder(harness_logs, "v1").glob("samples_riddles*")), filter="non")
    found = [run.fingerprint["task"]["filter"] for run in import_log(model_folder(harness_logs, "v1"), filter="strict")]
    assert found == ["none", "strict"]  # a task with one filter has no choice


def pair(tmp_path: Path, **changes: Any) -> tuple[Run, Run]:
    """Two logs of ten documents, the second with other results or samples."""
    rows = changes.pop("samples", [sample(number, number != 3) for number in range(10)])
    write_log(tmp_path / "old", [sample(number) for number in range(10)])
    write_log(tmp_path / "new", rows, found=results(model="org/new") | changes)
    return import_log(tmp_path / "old")[0], import_log(tmp_path / "new")[0]


def differing(old: Run, new: Run) -> set[str]:
    ours, theirs = old.fingerprint["task"], new.fingerprint["task"]
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def test_equal_settings_are_comparable(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    assert differing(old, new) == set()
    matrix = compare_runs(old, new).matrix
    assert matrix is not None
    assert (matrix.both_right, matrix.negative_flips, matrix.positive_flips) == (9, 1, 0)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"versions": {"colours": 2.0}}, {"version"}),
        ({"chat_template_sha": "abc"}, {"chat_template_sha"}),
        ({"system_instruction_sha": "abc"}, {"system_instruction_sha"}),
        ({"config": {"limit": 10.0}}, {"limit"}),
        (
            {"n-shot": {"colours": 5}, "config": {"fewshot_seed": 1234}},
            {"num_fewshot", "fewshot_seed", "fewshot_as_multiturn"},
        ),
        (
            {"samples": [sample(n, arguments={"gen_args_0": {"arg_0": f"Q: {n}", "arg_1": " x"}, "gen_args_1": {"arg_0": f"Q: {n}", "arg_1": " green"}}, resps=[[["-1", "False"]], [["-2", "False"]]]) for n in range(10)]},  # noqa: E501
            {"prompts"},
        ),
        ({"samples": [sample(number, target="2") for number in range(10)]}, {"targets"}),
    ],
)  # fmt: skip
def test_other_settings_are_not_comparable(tmp_path: Path, changes: dict[str, Any], keys: set[str]) -> None:
    old, new = pair(tmp_path, **changes)
    assert differing(old, new) == keys
    with pytest.raises(NotComparableError, match=sorted(keys)[0]):
        compare_runs(old, new)


def test_other_generation_settings_are_not_comparable(tmp_path: Path) -> None:
    def written(temperature: float) -> list[dict[str, Any]]:
        return [
            sample(
                number,
                arguments={"gen_args_0": {"arg_0": f"Q{number}", "arg_1": {"temperature": temperature}}},
                resps=[["text"]],
                filtered_resps=["text"],
            )
            for number in range(3)
        ]

    write_log(tmp_path / "old", written(0.0))
    write_log(tmp_path / "new", written(0.7), found=results(model="org/new"))
    old, new = import_log(tmp_path / "old")[0], import_log(tmp_path / "new")[0]
    assert differing(old, new) == {"gen_kwargs"}


def test_documents_are_paired_whatever_their_order(tmp_path: Path) -> None:
    rows = [sample(number, number != 3) for number in range(10)]
    old, new = pair(tmp_path, samples=rows[::-1])
    matrix = compare_runs(old, new).matrix
    assert matrix is not None
    assert (matrix.negative_flips, matrix.total) == (1, 10)


def test_equal_documents_are_told_apart_by_their_occurrence(tmp_path: Path) -> None:
    same = {"question": "twice"}
    write_log(tmp_path / "old", [sample(0, doc=same), sample(1, doc=same, right=False)])
    [run] = import_log(tmp_path / "old")
    assert run.count == 2


def test_lines_that_were_appended_twice_are_read_once(tmp_path: Path) -> None:
    rows = [sample(number) for number in range(4)]
    write_log(tmp_path / "old", rows + rows)
    [run] = import_log(tmp_path / "old")
    assert run.count == 4
    assert run.fingerprint["log"]["notes"] == [
        "lines that are in the log twice (the harness appends to its files), read once: 4"
    ]
    write_log(tmp_path / "other", [*rows, sample(1, right=False)])
    with pytest.raises(DataError, match=r"line 5: document 1 was logged before with another content"):
        import_log(tmp_path / "other")


def test_the_newest_log_of_a_task_is_read_and_said(tmp_path: Path) -> None:
    write_log(tmp_path, [sample(0, right=False)])
    write_log(tmp_path, [sample(0)], date="2026-02-02T03-04-05.000006")
    [run] = import_log(tmp_path)
    assert next(run.records()).correct
    assert run.fingerprint["log"]["notes"] == [
        f"colours: the log of 2026-02-02T03-04-05.000006 is read, older ones ({DATE}) are not"
    ]


def test_two_logs_without_a_date_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps(results()))
        (tmp_path / folder / "pretrained=org,old_colours.jsonl").write_text(json.dumps([sample(0)]))
    with pytest.raises(DataError, match="neither is newer"):
        import_log(tmp_path)


def test_files_of_old_releases_pair_with_those_of_today(tmp_path: Path) -> None:
    """They are JSON arrays, have no hashes, filters or list of metrics, and keep numbers as numbers."""
    doc = {"question": "Question 1:", "b": [1, 2]}
    hashed = hashlib.sha256(json.dumps(doc, indent=2, ensure_ascii=False).encode()).hexdigest()
    old = sample(
        1,
        doc=doc,
        arguments=[["Question 1:", " red"], ["Question 1:", " green"], ["Question 1:", " blue"]],
        resps=[[[-3.0, False]], [[-1.0, False]], [[-2.0, False]]],
        filtered_resps=[[-3.0, False], [-1.0, False], [-2.0, False]],
        target=1,
        filter=None,
        metrics=None,
        doc_hash=None,
        prompt_hash=None,
        target_hash=None,
    )
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pretrained=org,old_colours.jsonl").write_text(json.dumps([old], indent=2))
    (tmp_path / "old" / "results.json").write_text(json.dumps(results(model="org/old")))
    write_log(tmp_path / "new", [sample(1, doc=doc, doc_hash=hashed)])
    [before], [after] = import_log(tmp_path / "old"), import_log(tmp_path / "new")
    assert before.fingerprint["task"] == after.fingerprint["task"]
    assert list(before.records()) == list(after.records())


def test_options_of_digits_have_the_same_gold_answers_in_both_logs(tmp_path: Path) -> None:
    def row(number: int, target: str, said: int) -> dict[str, Any]:
        pairs = {f"gen_args_{n}": {"arg_0": f"{number}", "arg_1": f" {n + 1}"} for n in range(3)}
        values = [[[str(-1.0 if n + 1 == said else -2.0), "False"]] for n in range(3)]
        return sample(number, arguments=pairs, resps=values, target=target, acc=float(str(said) == target))

    write_log(tmp_path / "old", [row(0, "2", 1), row(1, "1", 1), row(2, "2", 3)])
    write_log(tmp_path / "new", [row(0, "2", 2), row(1, "1", 3), row(2, "2", 1)], found=results(model="org/new"))
    old, new = import_log(tmp_path / "old")[0], import_log(tmp_path / "new")[0]
    assert [record.target for record in old.records()] == [record.target for record in new.records()]
    assert all((record.answer == record.target) is record.correct for record in new.records())
    assert differing(old, new) == set()


def test_the_harness_hashes_documents_as_we_do(harness_logs: Path) -> None:
    from uphold.importers.lm_eval_samples import sample_of

    for path in model_folder(harness_logs, "v1").glob("samples_*"):
        for line in path.open():
            row = json.loads(line)
            assert sample_of({**row, "doc_hash": None}, "here").document == row["doc_hash"]


def test_tasks_that_say_nothing_per_document_are_left_out_and_named(tmp_path: Path) -> None:
    write_log(tmp_path, [sample(0)])
    pairs = sample(0, metrics=["word_perplexity"], word_perplexity=[-3.0, 7], acc=None)
    write_log(tmp_path, [pairs], task="prose", date="2026-01-02T04-04-05.000006", found=results("prose"))
    [run] = import_log(tmp_path)
    assert run.fingerprint["log"]["notes"] == [
        "left out: no metric of the task 'prose' is one number per document, so there is nothing to compare "
        "(there are word_perplexity)"
    ]
    with pytest.raises(DataError, match="'prose' is one number per document"):
        import_log(next(tmp_path.glob("samples_prose*")))


def test_metrics_where_lower_is_better_are_refused(tmp_path: Path) -> None:
    row = sample(0, metrics=["brier_score"], brier_score=0.2, acc=None)
    write_log(tmp_path, [row], found=results(higher_is_better={"colours": {"brier_score": False}}))
    with pytest.raises(DataError, match="lower is better for the metric 'brier_score'"):
        import_log(tmp_path)


def test_a_metric_that_one_task_lacks(tmp_path: Path) -> None:
    write_log(tmp_path, [sample(0, metrics=["acc", "f1"], f1=0.25)])
    write_log(tmp_path, [sample(0)], task="other", date="2026-01-02T04-04-05.000006", found=results("other"))
    runs = by_task(import_log(tmp_path, metric="f1"))
    assert runs["colours"].fingerprint["task"]["metric"] == "f1"
    assert (next(runs["colours"].records()).score, next(runs["colours"].records()).correct) == (0.25, None)
    assert runs["other"].fingerprint["log"]["notes"] == ["other has no metric 'f1': 'acc' is read"]
    with pytest.raises(UsageError, match="unknown metric 'f2': did you mean 'f1'"):
        import_log(tmp_path, metric="f2")


def test_unscored_documents_are_counted(tmp_path: Path) -> None:
    write_log(tmp_path, [sample(0), sample(1, acc=float("nan"))])
    [run] = import_log(tmp_path)
    assert run.fingerprint["log"]["notes"] == ["documents whose metric is NaN, left out: 1"]
    assert [record.score for record in run.records()].count(None) == 1


def test_results_without_samples_say_what_to_type(tmp_path: Path) -> None:
    write_log(tmp_path, [sample(0)]).unlink()
    assert is_log(tmp_path)
    with pytest.raises(DataError, match="run lm_eval again with --log_samples"):
        import_log(tmp_path)


def test_a_truncated_file_names_the_line(tmp_path: Path) -> None:
    path = write_log(tmp_path, [sample(number) for number in range(3)])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match=r"line 3: not valid JSON .* cut short or damaged"):
        import_log(tmp_path)


def test_samples_without_the_chosen_filter(tmp_path: Path) -> None:
    write_log(tmp_path, [sample(0, filter="other")])
    with pytest.raises(EmptyError, match="no sample of the filter 'none'"):
        import_log(tmp_path)


def test_without_results_the_lines_alone_are_read(tmp_path: Path) -> None:
    path = write_log(tmp_path / "model-1", [sample(0), sample(1)], found={})
    [run] = import_log(path)
    assert run.name == "model-1"
    assert run.fingerprint["task"]["version"] is None
    assert next(run.records()).options == ("red", "green", "blue")


def test_fields_of_the_document_become_tags(tmp_path: Path) -> None:
    write_log(tmp_path, [sample(number) for number in range(3)])
    [run] = import_log(tmp_path, columns={"topic": "subject", "none": "missing"})
    assert sorted(record.tags["topic"] for record in run.records()) == ["a", "b", "c"]
    assert all("none" not in record.tags for record in run.records())
    assert "instances without a value for the tag 'none' (missing): 3" in run.fingerprint["log"]["notes"]


def test_credentials_are_not_copied(tmp_path: Path) -> None:
    args = {"pretrained": "m", "api_key": "sk-1", "hf_token": "hf-1", "max_tokens": 5, "token": "t"}
    write_log(tmp_path, [sample(0)], found=results(config={"model_args": args}))
    [run] = import_log(tmp_path)
    assert run.fingerprint["model"]["args"] == {"pretrained": "m", "max_tokens": "5"}
