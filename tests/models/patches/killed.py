"""Kills changes of patched folders at every step that touches the disk, and looks at what is left.

    python -m tests.models.patches.killed SCRATCH SCENARIO=MODEL...     prints how often which state was found, as JSON

One process forks itself, so that the libraries are imported once. A child is killed by SIGKILL just before its n-th
step (opening for writing, renaming, removing or making something below SCRATCH), for n = 1, 2, ... until it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.models.patches.patched import change, copy, hashes, tensors
from uphold.models.checkpoint import INDEX, read_header
from uphold.models.patches.patch import Patch
from uphold.models.patches.place import applied_to, apply_in_place, remove_in_place

Action = Callable[[Path], object]
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink")


def actions(model: Path) -> dict[str, tuple[Action, Action]]:
    """What is done beforehand, and what is killed."""
    names = [name for name, value in tensors(model).items() if value.is_floating_point()]
    one, two = change(model, 1, names), change(model, 2, [names[0], names[-1]], "int4")

    def put(patch: Patch) -> Action:
        return lambda path: apply_in_place(path, [patch])

    def both(path: Path) -> None:
        put(one)(path)
        put(two)(path)

    return {
        "apply": (lambda path: None, put(one)),
        "apply-second": (put(one), put(two)),
        "remove-one": (both, lambda path: remove_in_place(path, [one.id])),
        "remove-last": (put(one), remove_in_place),
        "one-file": (lambda path: None, put(change(model, 3, names[:1]))),
    }


def killed(action: Action, path: Path, step: int) -> bool:
    """Whether `action` was killed before its `step`-th step; else it has ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = step
    scratch = str(path.parent)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in CHANGES) and scratch in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(audit)
        action(path)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001
        print(f"step {step}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def state(path: Path, old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> str:
    """What a loader finds: `old`, `new`, `none` (it refuses) or `MIXED`."""
    found: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors") if path.is_dir() else [path]:
        infos, _ = read_header(file)
        data = file.read_bytes()
        for name, info in infos.items():
            found[name] = torch.frombuffer(bytearray(data[info.start : info.start + info.nbytes]), dtype=info.dtype)

    def like(model: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(value, model[name].reshape(-1)) for name, value in found.items())

    if not like(old) and not like(new):
        return "MIXED"
    if found.keys() != old.keys() or (path.is_dir() and not (path / INDEX).is_file()):
        return "none"
    return "old" if like(old) else "new"


def content(path: Path) -> dict[str, str]:
    """Hashes of everything beside and in a model, wherever it lies."""
    return {file.partition("/")[2]: one for file, one in hashes(path.parent).items()}


def run(scenario: str, model: Path, scratch: Path) -> dict[str, int]:
    """Kill one scenario at every step; how often which state was found."""
    before, action = actions(model)[scenario]
    start, end, work = scratch / "old" / model.name, scratch / "new" / model.name, scratch / "work" / model.name
    start.parent.mkdir(parents=True)
    before(copy(model, start))
    shutil.copytree(start.parent, end.parent)
    action(end)
    old, new = tensors(start), tensors(end)
    wanted = {"old": content(start), "new": content(end)}
    counts: Counter[str] = Counter()

    def settled() -> str:
        applied_to(work)
        found = content(work)
        return next((name for name, files in wanted.items() if files == found), "WRONG")

    while True:
        counts["steps"] += 1
        shutil.rmtree(work.parent, ignore_errors=True)
        shutil.copytree(start.parent, work.parent)
        if not killed(action, work, counts["steps"]):
            break
        seen = state(work, old, new)
        counts[f"left {seen}"] += 1
        if counts["steps"] % 4 == 0:
            # The call that is to finish or clear up is killed as well, and the one after it.
            again = 1 + counts["steps"] % 3
            while killed(applied_to, work, again):
                counts[f"left again {state(work, old, new)}"] += 1
                again += 2
        after = settled()
        counts[f"settled {after}"] += 1
        counts["WRONG WAY"] += seen == "new" and after == "old"
    counts[f"ended {state(work, old, new)} {settled()}"] += 1
    return counts


def main(scratch: Path, scenarios: list[str]) -> None:
    """Run the scenarios and print what they found."""
    torch.set_num_threads(1)
    # What a power failure would leave cannot be tested here, and waiting for the disk takes most of the time.
    os.fsync = lambda handle: None
    pairs = [text.split("=", 1) for text in scenarios]
    print(json.dumps({name: run(name, Path(model), scratch / name) for name, model in pairs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
