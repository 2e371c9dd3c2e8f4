"""A deep network as consecutive stages: split, hashed stage by stage, and put together from stages of several models.

A model has a list of blocks (`nn.Sequential` or `nn.ModuleList`) that its forward pass goes through in order, and a
shell around it: what is called before the blocks (embeddings) belongs to the first stage, what is called after them
(final norm, head) to the last one. A model that is itself an `nn.Sequential` has no shell. Every parameter is owned by
exactly one stage; one that several stages use (tied embeddings) is owned by the first of them and is `shared`.

Ni et al., "Deep Incubation: Training Large Models by Divide-and-Conquering", ICCV 2023, arXiv:2212.04129.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from uphold.core.errors import UsageError
from uphold.core.hashing import sha256_of
from uphold.models.fingerprint import tensors_hash
from uphold.models.shared import shared_copy
from uphold.models.stages.split import block_run, counts_of_ratios, find_blocks, late_parts, part_of, shell_parts


@dataclass(frozen=True)
class Shared:
    """A tensor that more than one stage uses, as tied embeddings are."""

    name: str
    """Its stage-local name in the stage that owns it."""
    owner: int
    """The first stage that uses it."""
    aliases: tuple[str, ...]
    """All its names in the model, that of the owner first."""


@dataclass(frozen=True, eq=False)
class Stages:
    """A model and where it is cut. Stages are counted from 0; nothing is copied."""

    model: nn.Module
    blocks: str
    """Path of the list of blocks; "" where the model itself is it."""
    starts: tuple[int, ...]
    """The first block of each stage; the first stage starts at 0, a stage without blocks where the next one does."""
    late: tuple[str, ...] = ()
    """Paths of the shell's modules that belong to the last stage; what else is in the shell belongs to the first."""

    def __post_init__(self) -> None:
        edges = (*self.starts, len(self._list))
        empty = [stage for stage, (start, end) in enumerate(pairwise(edges)) if end <= start]
        shell = {stage for stage in (0, len(self.starts) - 1) if self._shell_of(stage)}
        if not self.starts or self.starts[0] != 0 or not set(empty) <= shell or list(edges) != sorted(edges):
            raise UsageError(
                f"stages that start at blocks {list(self.starts)} of {len(self._list)}: every stage needs a block "
                "of its own (the first and the last may have the embeddings or the head instead)"
            )

    # ---- where to cut ----

    @classmethod
    def by_counts(
        cls, model: nn.Module, counts: Sequence[int], *, blocks: str | None = None, sample: torch.Tensor | None = None
    ) -> Stages:
        """Cut by the number of blocks in each stage.

        Blocks are the longest run of children of one class in the list; what stands before them in it (a stem) joins
        the first stage, what stands after them (norm, head) the last.

        Args:
            model: an `nn.Sequential`, a transformers model, or any module that calls a list of blocks in order.
            counts: blocks of each stage, each at least 1; they add up to all blocks.
            blocks: path of the list of blocks; None finds the one with the longest run.
            sample: a batch of inputs, to see what is called before and what after the blocks; not needed for an
                `nn.Sequential` or a transformers model that reads token ids.

        Raises:
            UsageError: there is no such list, or the counts do not fit it.
        """
        path = find_blocks(model) if blocks is None else blocks
        first, end = block_run(model, path)
        if min(counts, default=0) < 1 or sum(counts) != end - first:
            raise UsageError(
                f"'{path or 'the model'}' has {end - first} blocks, and the stages have {list(counts)}: expected "
                f"counts of at least 1 with the sum {end - first}, or cut by names (Stages.at)"
            )
        starts = (0, *(first + before for before in accumulate(counts[:-1])))
        return cls(model, path, starts, late_parts(model, path, sample))

    @classmethod
    def by_ratios(
        cls, model: nn.Module, ratios: Sequence[float], *, blocks: str | None = None, sample: torch.Tensor | None = None
    ) -> Stages:
        """Cut in proportion to `ratios`: largest remainders, at least one block each. See `by_counts`.

        Raises:
            UsageError: a ratio is not positive, or there are fewer blocks than stages.
        """
        path = find_blocks(model) if blocks is None else blocks
        first, end = block_run(model, path)
        return cls.by_counts(model, counts_of_ratios(ratios, end - first), blocks=path, sample=sample)

    @classmethod
    def at(cls, model: nn.Module, firsts: Sequence[str], *, sample: torch.Tensor | None = None) -> Stages:
        """Cut in front of named modules.

        Args:
            model: see `by_counts`.
            firsts: the first module of each stage but the first, in forward order, such as `["3", "6"]` of an
                `nn.Sequential` or `["model.layers.0", "model.layers.12", "model.norm"]` of a decoder: the first block
                there makes the embeddings a stage of their own, a module behind the blocks the head.
            sample: see `by_counts`.

        Raises:
            UsageError: a name is neither a block nor the first module behind the blocks, or they are out of order.
        """
        path = _parent(firsts[0]) if firsts and not _is_late(model, firsts[0]) else find_blocks(model)
        names = [name for name, _ in _list_of(model, path).named_children()]
        late = late_parts(model, path, sample)
        known = {f"{path}.{name}" if path else name: number for number, name in enumerate(names)}
        starts = [0]
        for number, name in enumerate(firsts):
            if name in known:
                starts.append(known[name])
            elif number == len(firsts) - 1 and name in late[:1]:
                starts.append(len(names))
            else:
                raise UsageError(
                    f"'{name}' is no place to cut: expected blocks such as '{next(iter(known))}'"
                    + (f", or at last '{late[0]}'" if late else "")
                )
        return cls(model, path, tuple(starts), late)

    # ---- what a stage is ----

    @property
    def count(self) -> int:
        """How many stages there are (K)."""
        return len(self.starts)

    @property
    def depths(self) -> tuple[int, ...]:
        """How many members of the list of blocks each stage has."""
        return tuple(end - start for start, end in pairwise((*self.starts, len(self._list))))

    @cached_property
    def shared(self) -> tuple[Shared, ...]:
        """Tensors that several stages use; see `Shared`."""
        groups: dict[int, list[tuple[int, str, str]]] = {}
        for name, tensor in self._state():
            groups.setdefault(id(tensor), []).append((*self.place(name), name))
        found = []
        for places in groups.values():
            if len({stage for stage, _, _ in places}) > 1:
                places.sort(key=lambda place: place[0])
                owner, local, _ = places[0]
                found.append(Shared(local, owner, tuple(name for _, _, name in places)))
        return tuple(found)

    def place(self, name: str) -> tuple[int, str]:
        """The stage that the tensor or module called `name` lies in, and its stage-local name.

        Local names count blocks from the start of their stage, so that a stage keeps them in a model of other depth.
        """
        if part_of(name, self.blocks) and name != self.blocks:
            child, _, rest = name.removeprefix(f"{self.blocks}." if self.blocks else "").partition(".")
            if child in self._numbers:
                number = self._numbers[child]
                stage = max(stage for stage, start in enumerate(self.starts) if start <= number)
                return stage, f"blocks.{number - self.starts[stage]}.{rest}"
        return (self.count - 1 if any(part_of(name, part) for part in self.late) else 0), f"shell.{name}"

    def tensors(self, stage: int) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers that `stage` owns, by local name; the model's own, not copies."""
        elsewhere = {alias for one in self.shared for alias in one.aliases[1:]}
        found: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self._state():
            where, local = self.place(name)
            if where == stage and name not in elsewhere and id(tensor) not in seen:
                found[local] = tensor
                seen.add(id(tensor))
        return found

    def parameters(self, stage: int) -> dict[str, nn.Parameter]:
        """What a job may train: the parameters that `stage` owns, without shared ones, by local name."""
        tied = {one.name for one in self.shared if one.owner == stage}
        return {
            name: tensor
            for name, tensor in self.tensors(stage).items()
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and name not in tied
        }

    def modules(self, stage: int) -> list[nn.Module]:
        """The blocks and shell modules of `stage`."""
        start, end = (*self.starts, len(self._list))[stage : stage + 2]
        return [*list(self._list)[start:end], *map(self.model.get_submodule, self._shell_of(stage))]

    def hash(self, stage: int) -> str:
        """SHA-256 of what `stage` owns: local names, dtypes, shapes and bytes."""
        return tensors_hash(self.tensors(stage))

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hash of each stage."""
        return tuple(map(self.hash, range(self.count)))

    @property
    def digest(self) -> str:
        """What the whole is called by: the hash of the stages' hashes, in order."""
        return sha256_of(self.hashes)

    # ---- new models ----

    def copied(self) -> Stages:
        """A copy with weights of its own."""
        return replace(self, model=copy.deepcopy(self.model))

    def load(self, stage: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write `tensors` into `stage`, in place.

        Raises:
            UsageError: names, shapes or dtypes are not those that the stage has.
        """
        own = self.tensors(stage)
        for name in sorted(own.keys() | tensors.keys()):
            ours, theirs = (
                f"{tuple(one[name].shape)} {one[name].dtype}" if name in one else "absent" for one in (own, tensors)
            )
            if ours != theirs:
                raise UsageError(
                    f"stage {stage} does not fit: {name} is {theirs} in the module and {ours} in the model; "
                    "name a model of the architecture that the module was made for"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    @property
    def _list(self) -> Any:
        return _list_of(self.model, self.blocks)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, (name, _) in enumerate(self._list.named_children())}

    def _state(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.state_dict(keep_vars=True).items()

    def _shell_of(self, stage: int) -> list[str]:
        """Paths of the shell's modules that belong to `stage` alone."""
        wanted = set()
        if stage == 0:
            wanted |= {part for part in shell_parts(self.model, self.blocks) if part not in self.late}
        if stage == len(self.starts) - 1:
            wanted |= set(self.late)
        return sorted(wanted)


def compose(parts: Sequence[Stages], own: int | None = None) -> Stages:
    """A model of stage 0 of the first part, stage 1 of the second, and so on; one part may stand for several stages.

    Shared tensors are those of the part that brings their owner. Attention layers learn their new number, and a
    transformers configuration its new depth.

    Args:
        parts: one split model per stage, cut alike; they may differ in depth.
        own: the stage that gets weights of its own and requires gradients. All others are frozen and on the memory of
            the models they come from.

    Raises:
        UsageError: the parts are not cut alike.
    """
    _check_alike(parts)
    device = _device(parts[1 if own == 0 and len(parts) > 1 else 0].model)
    frozen = {id(part): shared_copy(part.model).to(device) for part in parts}
    copies = [
        copy.deepcopy(part.model).to(device) if stage == own else frozen[id(part)] for stage, part in enumerate(parts)
    ]
    model, path = copies[0], parts[0].blocks
    taken: list[tuple[str, Any]] = []
    starts: list[int] = []
    kinds: list[Any] = []
    for stage, (part, made) in enumerate(zip(parts, copies, strict=True)):
        start, end = (*part.starts, len(part._list))[stage : stage + 2]
        starts.append(len(taken))
        taken += list(_list_of(made, path).named_children())[start:end]
        kinds += layer_types(part.model)[start:end]
    late = [(where, copies[-1].get_submodule(where)) for where in parts[0].late]
    fill(model, path, taken, kinds)
    for where, module in late:
        model.set_submodule(where, module)
    made = Stages(model, path, tuple(starts), parts[0].late)
    _tie(made, parts[0])
    if own is not None:
        for stage in range(made.count):
            for parameter in made.tensors(stage).values():
                parameter.requires_grad_(False)
        for parameter in made.parameters(own).values():
            parameter.requires_grad_(True)
    return made


def fill(model: nn.Module, path: str, members: Sequence[tuple[str, nn.Module]], kinds: Sequence[Any]) -> None:
    """Put `members` in the place of the model's blocks; their names stay where no two are equal."""
    blocks = _list_of(model, path)
    names = [name for name, _ in members]
    if len(set(names)) < len(names) or isinstance(blocks, nn.ModuleList):
        names = [str(number) for number in range(len(members))]
    blocks._modules.clear()
    for number, (name, (_, module)) in enumerate(zip(names, members, strict=True)):
        blocks.add_module(name, module)
        for inner in module.modules():
            if isinstance(getattr(inner, "layer_idx", None), int):
                inner.layer_idx = number  # type: ignore[assignment]
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = len(members)
        if kinds:
            config.layer_types = list(kinds)


def layer_types(model: nn.Module) -> list[Any]:
    """The kind of each layer (sliding or full attention) in a transformers configuration; empty where it has none."""
    # Not where it is computed from the depth, as in some families.
    config = getattr(model, "config", None)
    return list((vars(config).get("layer_types") if config is not None else None) or ())


def _device(model: nn.Module) -> torch.device:
    return next((value.device for value in model.parameters()), torch.device("cpu"))


def _check_alike(parts: Sequence[Stages]) -> None:
    first = parts[0]
    for part in parts:
        if part.count != len(parts):
            raise UsageError(f"a model of {part.count} stages cannot give one of {len(parts)}: cut both alike")
        if (part.blocks, part.late) != (first.blocks, first.late):
            raise UsageError(
                f"the stages come from models of two shapes (blocks in '{part.blocks}' and '{first.blocks}'): expected "
                "one architecture that differs in depth only"
            )
        if bool(layer_types(part.model)) != bool(layer_types(first.model)):
            raise UsageError("one of the models lists the kinds of its layers and another does not: use one family")


def _tie(made: Stages, like: Stages) -> None:
    """Make what is one tensor in `like` one tensor in `made`: that of the stage that owns it."""
    for one in like.shared:
        if any(like.place(alias)[1].startswith("blocks.") for alias in one.aliases):
            raise UsageError(f"'{one.aliases[0]}' is shared between blocks of two stages: cut where nothing is shared")
        value = made.model.get_parameter(one.aliases[0])
        for alias in one.aliases[1:]:
            setattr(made.model.get_submodule(_parent(alias)), alias.rpartition(".")[2], value)


def _list_of(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UsageError(f"the model has no module '{path}': name a list of blocks or one of its members") from error


def _is_late(model: nn.Module, name: str) -> bool:
    parent = _list_of(model, _parent(name))
    return not isinstance(parent, nn.Sequential | nn.ModuleList)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
