"""A search among repairs that are written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.repair.search_fakes import Clock, Fake, Look, Model, registered, setting, task
from uphold.core.registry import methods
from uphold.repair.search import search
from uphold.repair.search_result import Search, SearchConfig


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Search among fakes."""
    # Modules keep what they import: they must all be there before something takes the place of what they import.
    methods()

    def begin(*args: Any, out: Path, progress: Any, **options: Any) -> Any:
        return replace(setting(Path(out)), progress=progress)

    monkeypatch.setattr("uphold.repair.protocol.begin", begin)
    monkeypatch.setattr("uphold.models.load.load", Model)
    monkeypatch.setattr("uphold.models.adapter.base_name", lambda loaded: loaded.name)
    clock = Clock()

    def run(*fakes: Fake, out: str = "out", progress: Any = None, **options: Any) -> Search:
        more = {"progress": progress} if progress else {}
        with registered(*fakes, clock=clock):
            return search(
                "old",
                "new",
                task(),
                out=tmp_path / out,
                config=SearchConfig(**{"trials": 100, **options}),
                recipe="demo",
                clock=clock,
                **more,
            )

    return run
