from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.bigbench_data import CHOICES, text_examples, write_task
from uphold.core.errors import CorruptError, DataError, UpholdError
from uphold.tasks.bigbench import bigbench_task


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
