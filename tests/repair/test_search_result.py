from __future__ import annotations

from pathlib import Path

import pytest

from tests.repair.search_fakes import Fake, Look, always, fixes
from uphold.core.errors import CorruptError, DataError
from uphold.repair.search_result import load_search


def test_damage_is_named(look: Look, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no search in"):
        load_search(tmp_path)
    look(Fake("a", always(fixes(1))))
    path = tmp_path / "out" / "search.json"
    path.write_text('{"format": 1}')
    with pytest.raises(CorruptError, match="not a saved search"):
        load_search(tmp_path / "out")
