from __future__ import annotations

from pathlib import Path

import pytest

from uphold.core.errors import UsageError
from uphold.core.storage import write_json
from uphold.repair.out_folder import ADAPT, SEARCH, check_out_folder


@pytest.mark.parametrize(
    ("file", "content", "own", "said"),
    [
        ("repair.json", {"method": "muscle"}, "muscle", "a repair by muscle"),
        ("search.json", {}, SEARCH, "a search"),
        ("trials/kd-1/repair.json", {"method": "kd"}, SEARCH, "a search"),
        ("adapt.json", {}, ADAPT, "a task adapter"),
        ("config.json", {}, None, "a model"),
    ],
)
def test_a_folder_is_written_to_by_its_own_maker_only(
    file: str, content: dict[str, str], own: str | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    write_json(tmp_path / file, content)
    for maker in ("muscle", "bcwi", ADAPT, SEARCH):
        if maker == own:
            check_out_folder(tmp_path, maker)
        else:
            with pytest.raises(UsageError, match=f"holds {said}.*choose another --out"):
                check_out_folder(tmp_path, maker)


def test_a_search_may_go_on_where_its_choice_lies(tmp_path: Path) -> None:
    write_json(tmp_path / "search.json", {})
    write_json(tmp_path / "repair.json", {"method": "bcwi"})
    check_out_folder(tmp_path, SEARCH)
    with pytest.raises(UsageError, match="a search"):
        check_out_folder(tmp_path, "bcwi")


def test_a_new_or_unfinished_folder_is_free(tmp_path: Path) -> None:
    check_out_folder(tmp_path / "new", "muscle")
    (tmp_path / "training").mkdir()
    check_out_folder(tmp_path, "muscle")
