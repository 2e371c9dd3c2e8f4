from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uphold.core import registry
from uphold.core.errors import UpholdError, UsageError

if TYPE_CHECKING:
    import some_library_that_is_not_there as absent  # type: ignore[import-not-found]


@dataclass(frozen=True)
class Options:
    strength: float = 1.0


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.methods()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where packages can be installed for the time of a test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if name.startswith("sample_"):
            del sys.modules[name]
    importlib.invalidate_caches()


def install(site: Path, module: str, code: str, entry: str = "") -> None:
    """Install a distribution with one module and one entry point of ours."""
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[uphold.methods]\nsample = {entry or module}\n")
    importlib.invalidate_caches()


PLUGIN = '''
from __future__ import annotations
from dataclasses import dataclass
from uphold.core.registry import repair

@dataclass(frozen=True)
class SoupConfig:
    members: int = 3

@repair("soup", paper="arXiv:2203.05482")
def soup(old, new, task, *, config: SoupConfig | None = None):
    """Average the weights of several new models.

    More words.
    """
'''


def test_the_methods_of_this_package_are_found() -> None:
    names = {(method.room, method.name) for method in registry.methods()}

    assert {("measure", "flips"), ("measure", "score-flips"), ("repair", "muscle")} <= names
    muscle = registry.method("repair", "muscle")
    assert muscle.paper == "arXiv:2407.09435"
    assert muscle.summary
    assert muscle.config is not None


def test_finding_methods_imports_no_torch() -> None:
    program = "import sys; from uphold.core import registry; registry.methods(); print('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_plug_in_registers_through_its_entry_point(site: Path) -> None:
    install(site, "sample_soup", PLUGIN)

    soup = registry.method("repair", "soup")

    assert soup.paper == "arXiv:2203.05482"
    assert soup.summary == "Average the weights of several new models."
    assert soup.config is not None
    assert soup.config().members == 3
    assert soup in registry.methods("repair")
    assert soup not in registry.methods("measure")


@pytest.mark.parametrize(
    ("code", "entry", "reason"),
    [
        ("import no_such_module_of_ours", "", "ModuleNotFoundError: No module named 'no_such_module_of_ours'"),
        ("1 / 0", "", "ZeroDivisionError"),
        ("def broken(:\n    pass", "", "SyntaxError"),
        ("x = 1", "sample_broken:missing", "AttributeError"),
        ("raise RuntimeError('two\\nlines')", "", "RuntimeError: two lines"),
    ],
)
def test_a_broken_plug_in_is_one_line(site: Path, code: str, entry: str, reason: str) -> None:
    install(site, "sample_broken", code, entry)

    with pytest.raises(UsageError, match="reinstall or remove the package that brings it") as caught:
        registry.methods()
    assert str(caught.value).startswith(f"the plug-in 'sample' ({entry or 'sample_broken'}) cannot be imported")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plug_in_may_not_take_a_known_name(site: Path) -> None:
    install(site, "sample_taken", PLUGIN.replace('"soup"', '"muscle"'))

    with pytest.raises(UsageError, match=r"repair method 'muscle' of sample_taken is already registered by uphold\."):
        registry.methods()


def test_methods_are_sorted_by_room_and_name() -> None:
    registry.verify("b-method")(lambda: None)
    registry.verify("a-method")(lambda: None)
    registry.explain("z-method")(lambda: None)

    found = [(method.room, method.name) for method in registry.methods()]

    assert found == sorted(found, key=lambda pair: (registry.ROOMS.index(pair[0]), pair[1]))
    assert [method.name for method in registry.methods("verify")] == ["a-method", "b-method"]


def test_an_unknown_method_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"unknown repair method 'mussel': did you mean 'muscle'\?"):
        registry.method("repair", "mussel")
    with pytest.raises(UpholdError, match="'uphold methods' lists them"):
        registry.method("explain", "muscle")


def test_only_the_config_annotation_is_resolved() -> None:
    @registry.repair("heavy")
    def heavy(model: absent.Model, *, config: Options) -> absent.Model:
        """Repair."""

    assert registry.method("repair", "heavy").config is Options
    assert registry.method("repair", "heavy").summary == "Repair."


def test_an_optional_config_is_its_dataclass() -> None:
    @registry.repair("optional")
    def optional(model: absent.Model, *, config: Options | None = None) -> None: ...

    assert registry.method("repair", "optional").config is Options


def test_a_method_without_config_has_none() -> None:
    @registry.verify("plain")
    def plain(model: absent.Model) -> None: ...

    assert registry.method("verify", "plain").config is None
    assert registry.method("verify", "plain").summary == ""


def test_a_config_that_is_no_dataclass_is_refused() -> None:
    @registry.verify("loose")
    def loose(*, config: dict[str, int]) -> None: ...

    with pytest.raises(UsageError, match="verify method 'loose': its config parameter must be annotated"):
        _ = registry.method("verify", "loose").config


def test_a_decorated_function_stays_what_it_was() -> None:
    @registry.verify("callable")
    def twice(value: int) -> int:
        return 2 * value

    assert twice(4) == 8
    assert registry.method("verify", "callable").function is twice
