"""Several processes on one job, as `accelerate launch` and `torchrun` start them.

Every process makes the same calls in the same order. What is computed once is computed by the first one, which alone
writes files; the others wait for it and read what it left, so all of them must see the same folders.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from uphold.core.errors import UpholdError

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may be evaluating; one that dies is noticed by the launcher."""


def is_first() -> bool:
    """Whether this process may print and write: it is alone, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Processes:
    """The processes of a job, seen from one of them."""

    rank: int = 0
    count: int = 1
    control: Any = None
    """The group that messages go through; None for a process that is alone."""

    @property
    def is_first(self) -> bool:
        """Whether this process may print and write."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every process's `values`, in their place; on the device that they are on."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, plain JSON, in the order of ranks."""
        if self.count == 1:
            return [value]
        import torch
        import torch.distributed as dist

        # As JSON: the library's own messages would be pickled.
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(text)]), group=self.control)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = text
        texts = [torch.zeros_like(padded) for _ in range(self.count)]
        dist.all_gather(texts, padded, group=self.control)
        return [json.loads(bytes(one[: int(size)].tolist()).decode()) for one, size in zip(texts, sizes, strict=True)]

    def agree(self, value: Any) -> Any:
        """The first process's `value`, plain JSON; the others' are not looked at."""
        return value if self.count == 1 else self.gather(value if self.is_first else None)[0]

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process runs the block before the others do.

        Raises:
            UpholdError: in the others, when it failed in the first.
        """
        if not self.is_first and not self.agree(None):
            raise UpholdError("the first process has stopped with an error: see its message")
        try:
            yield
        except BaseException:
            if self.is_first:
                self.agree(False)
            raise
        if self.is_first:
            self.agree(True)

    def once(self, work: Callable[[], object]) -> None:
        """The first process does `work`; the others wait until it is done."""
        with self.first():
            if self.is_first:
                work()


@cache
def current() -> Processes:
    """The processes of this job: started by `accelerate launch` or `torchrun`, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    atexit.register(state.destroy_process_group)
    return Processes(state.process_index, state.num_processes, control)
