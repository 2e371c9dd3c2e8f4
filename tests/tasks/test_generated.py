from __future__ import annotations

import re
from typing import Any

import pytest

from uphold.core.errors import DataError, UsageError
from uphold.tasks.base import SPLITS, split_sizes
from uphold.tasks.generated import GeneratedConfig, dataset_names, generated_task
from uphold.tasks.load import load_task


def chain_sum(**options: Any) -> Any:
    return generated_task("chain_sum", GeneratedConfig(**options))


def prompts(task: Any, split: str) -> list[str]:
    return [instance.prompt for instance in task.instances(split)]


def test_a_size_is_divided() -> None:
    assert split_sizes(chain_sum(size=100)) == {"train": 60, "validation": 10, "test": 30}
    assert split_sizes(chain_sum(train=5, validation=0, test=7)) == {"train": 5, "validation": 0, "test": 7}
    assert split_sizes(chain_sum(size=100, test=1)) == {"train": 60, "validation": 10, "test": 1}


def test_a_seed_repeats_itself() -> None:
    first, second, other = chain_sum(size=20, seed=3), chain_sum(size=20, seed=3), chain_sum(size=20, seed=4)

    for split in SPLITS:
        assert first.instances(split) == second.instances(split)
        assert prompts(first, split) != prompts(other, split)


def test_a_larger_train_split_leaves_the_test_split_alone() -> None:
    small, large = (chain_sum(train=train, validation=5, test=10) for train in (10, 80))

    assert large.instances("test") == small.instances("test")
    assert large.instances("validation") == small.instances("validation")
    assert large.instances("train")[:10] == small.instances("train")


def test_splits_share_no_question_even_where_the_generator_repeats_itself() -> None:
    # Two terms of one digit: 10 * 10 * 2 different questions, so that 150 drawn ones hold duplicates.
    task = chain_sum(
        train=90, validation=20, test=40, dataset={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    )
    questions = [prompt for split in SPLITS for prompt in prompts(task, split)]

    assert len(questions) == len(set(questions)) == 150
    (note,) = task.notes
    assert int(note.split()[0]) > 0
    assert note.endswith("duplicate questions were generated and left out")


def test_more_questions_than_there_are_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"gave only \d+ different questions out of \d+, 400 are asked for"):
        chain_sum(size=400, dataset={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})


def test_options_reach_the_dataset() -> None:
    task = chain_sum(size=20, dataset={"min_terms": 3, "max_terms": 3})

    assert {instance.extra["metadata"]["num_terms"] for instance in task.instances("train")} == {3}
    assert all(prompt.count("+") + prompt.count(" - ") == 2 for prompt in prompts(task, "train"))


def test_the_target_is_the_sum() -> None:
    for instance in chain_sum(size=20).instances("train"):
        sum_of = instance.prompt.removeprefix("State the final answer to the following arithmetic problem: ")
        assert int(instance.target) == eval(sum_of.removesuffix("="))


def test_a_pattern_rewrites_the_prompt() -> None:
    task = chain_sum(size=10, pattern=r": (.*) =", prompt="{1}=", delimiter="")

    assert all(prompt[0] in "-0123456789" and prompt.endswith("=") for prompt in prompts(task, "test"))
    assert "State" not in "".join(prompts(task, "test"))
    # A gold answer is still right, since the verifier sees the original entry.
    instance = task.instances("test")[0]
    assert task.score(instance, instance.target).score == 1.0


def test_a_pattern_that_does_not_match_is_an_error() -> None:
    with pytest.raises(DataError, match="the pattern 'nothing like it' does not match 'State the final"):
        chain_sum(size=10, pattern="nothing like it")
    with pytest.raises(UsageError, match=r"the pattern '\(' is no regular expression"):
        chain_sum(size=10, pattern="(")


def test_the_verifier_scores_answers() -> None:
    task = chain_sum(size=10)
    instance = task.instances("test")[0]

    assert task.score(instance, f"  {instance.target}\n") == (instance.target, True, 1.0)
    wrong = task.score(instance, str(int(instance.target) + 1))
    assert not wrong.correct
    assert wrong.score is not None
    assert 0 <= wrong.score < 1
    assert task.score(instance, "").correct is False


@pytest.mark.parametrize("dataset", ["mini_sudoku", "rotate_matrix", "n_queens", "tower_of_hanoi"])
def test_gold_answers_of_several_lines_are_right(dataset: str) -> None:
    task = generated_task(dataset, GeneratedConfig(size=4))
    instance = task.instances("test")[0]

    assert "\n" in instance.target
    assert task.score(instance, instance.target).correct
    assert task.notes == ("3 of 3 gold answers hold a stop string, so no model can give them: set stop",)


def test_a_stop_string_that_no_answer_holds_is_not_remarked_on() -> None:
    assert generated_task("mini_sudoku", GeneratedConfig(size=4, stop=("\n\n",))).notes == ()
    assert chain_sum(size=10).notes == ()


@pytest.mark.parametrize(
    ("dataset", "output"),
    [("prime_factorization", "no idea"), ("game_of_life", "{}"), ("coin_flip", "1e999"), ("chain_sum", "\0")],
)
def test_an_answer_that_the_verifier_cannot_read_is_wrong(dataset: str, output: str) -> None:
    task = generated_task(dataset, GeneratedConfig(size=10))
    score = task.score(task.instances("train")[0], output)

    assert score.correct is False
    assert score.score is not None
    assert score.score < 1


def test_choice_ranks_the_answers_that_occur() -> None:
    task = generated_task("syllogism", GeneratedConfig(size=40, kind="choice"))
    instance = task.instances("test")[0]

    assert task.kind == "choice"
    assert task.scorer == "choice.v1"
    assert instance.options == ("No", "Yes")
    assert instance.target in instance.options
    assert task.score(instance, instance.target) == (instance.target, True, 1.0)


def test_a_task_with_too_many_answers_is_no_choice() -> None:
    with pytest.raises(UsageError, match="different answers; kind=choice needs 2 to 64: use kind=generate"):
        chain_sum(size=200, kind="choice")


def test_an_unknown_dataset_gets_the_nearest_name() -> None:
    assert "chain_sum" in dataset_names()
    with pytest.raises(UsageError, match="unknown reasoning-gym dataset 'chain_sun': did you mean 'chain_sum'"):
        generated_task("chain_sun")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "asked for 0 instances"),
        ({"dataset": {"no_such_option": 1}}, "no_such_option"),
        ({"dataset": {"min_terms": 5, "max_terms": 2}}, "max_terms must be >= min_terms"),
    ],
)
def test_options_that_cannot_work_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        chain_sum(**options)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_gold_answers_is_refused() -> None:
    with pytest.raises(UsageError, match="rg:graph_color has no single gold answer"):
        generated_task("graph_color", GeneratedConfig(size=5))


def test_a_pattern_picks_the_prompt_out_of_the_question_and_compact_drops_its_white_space() -> None:
    config = GeneratedConfig(size=10, pattern=r"problem: (.*) =", prompt="{1}>", compact=True, delimiter="")
    for instance in generated_task("chain_sum", config).instances("test"):
        assert re.fullmatch(r"[-\d+]+>", instance.prompt)


def test_few_answers_become_slices_and_constant_tags_do_not() -> None:
    config = GeneratedConfig(size=60, dataset={"min_terms": 3, "max_terms": 3})
    assert not any(
        {"num_terms", "answer"} & one.tags.keys() for one in generated_task("chain_sum", config).instances("test")
    )
    judged = generated_task("syllogism", GeneratedConfig(size=60)).instances("test")
    assert all(instance.tags["answer"] == instance.target for instance in judged)


def test_the_demo_task_is_what_its_file_says() -> None:
    task = load_task("demo")
    assert [len(task.instances(split)) for split in SPLITS] == [4000, 1000, 2000]
    assert {len(instance.prompt) for split in SPLITS for instance in task.instances(split)} == {18}
    assert len({instance.target for instance in task.instances("test")}) == 11
