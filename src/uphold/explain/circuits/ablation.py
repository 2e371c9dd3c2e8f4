"""Circuits under mean ablation: faithfulness, completeness, minimality (arXiv:2402.14811, section 3.2 and appendix).

F(C)  accuracy with every node outside C set to its mean
faithfulness F(C) / F(M)      incompleteness |F(C - K) - F(M - K)|
minimality of h: F(C - K) / F(C - K - {h}) - 1, where K are the nodes of its group that stand in for h most
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import torch

from uphold.core.errors import DataError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.measures import Measure, measured
from uphold.explain.circuits.prompts import BATCH, Node, Prompts
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout
from uphold.models.sites.resume import Kept, keep
from uphold.models.sites.site import Site
from uphold.models.sites.sweep import sweep

Circuit = frozenset[Node]


@dataclass(frozen=True)
class Bench:
    """A model and prompts on which circuits are tried; each is run once."""

    layout: Layout
    parts: tuple[tuple[Prompts, Kept], ...]
    means: Mapping[Site, torch.Tensor]
    universe: tuple[Node, ...]
    """What is ablated unless a circuit keeps it; heads at roles that are not in it are never touched."""
    known: dict[Circuit, torch.Tensor] = field(default_factory=dict)
    """By circuit, which prompts it solves, bool, shape (rows,)."""

    @property
    def whole(self) -> Circuit:
        """The circuit of all nodes: the model itself."""
        return frozenset(self.universe)

    def solved(self, circuits: Iterable[Iterable[Node]], progress: Progress = silent) -> torch.Tensor:
        """Which prompts each circuit solves, bool, shape (circuits, rows)."""
        wanted = [frozenset(circuit) for circuit in circuits]
        missing = [circuit for circuit in dict.fromkeys(wanted) if circuit not in self.known]
        if missing:
            found = self.measure(missing, "correct", progress).bool()
            self.known.update(zip(missing, found, strict=True))
        return torch.stack([self.known[circuit] for circuit in wanted])

    def accuracy(self, circuit: Iterable[Node]) -> float:
        """F of a circuit."""
        return self.accuracies([circuit])[0]

    def accuracies(self, circuits: Sequence[Iterable[Node]], progress: Progress = silent) -> list[float]:
        """F of each circuit."""
        return self.solved(circuits, progress).double().mean(1).tolist() if circuits else []

    def measure(self, circuits: Sequence[Circuit], measure: Measure, progress: Progress = silent) -> torch.Tensor:
        """A measure under each circuit, shape (circuits, rows)."""
        found = []
        for number, (prompts, kept) in enumerate(self.parts):
            candidates = [ablation(circuit, self.universe, self.means, prompts) for circuit in circuits]
            values = measured(measure, prompts)(kept.logits, torch.arange(len(prompts), device=prompts.at.device))
            part = values.float().cpu().expand(len(circuits), -1).clone()
            some = [index for index, edits in enumerate(candidates) if edits]
            if some:
                edits = [candidates[index] for index in some]
                part[some] = sweep(self.layout, kept, edits, measured(measure, prompts)).cpu()
            found.append(part)
            progress("ablation", number + 1, len(self.parts), f"{len(circuits)} circuits")
        return torch.cat(found, 1)


def bench(
    layout: Layout,
    prompts: Prompts,
    means: Mapping[Site, torch.Tensor],
    universe: Sequence[Node],
    *,
    batch: int = BATCH,
) -> Bench:
    """Run the model once on the prompts, to ablate from there.

    Args:
        layout: of the model.
        prompts: what to measure on, of the length of the means; not those that the circuit was chosen with.
        means: of `uphold.explain.circuits.means.mean_activations`.
        universe: the nodes that count. The paper's: all heads at the special roles and at `other`; without `other`,
            the remaining positions are left alone.
        batch: prompts in one forward pass.

    Raises:
        UsageError: the means are of another length.
    """
    length = len(next(iter(means.values())))
    if length != prompts.length:
        raise UsageError(f"means of {length} positions do not fit prompts of {prompts.length}")
    parts = tuple((part, keep(layout, part.inputs, part.at)) for part in prompts.batches(batch))
    return Bench(layout, parts, means, tuple(universe))


def ablation(
    circuit: Iterable[Node], universe: Iterable[Node], means: Mapping[Site, torch.Tensor], prompts: Prompts
) -> list[Edit]:
    """The edits that set every node of the universe outside the circuit to its mean.

    Where two roles are at one position, a head is kept there if the circuit keeps it at either.
    """
    kept = frozenset(circuit)
    masks = {role: prompts.mask(role) for role in {node.role for node in universe}}
    heads: dict[Site, list[Node]] = {}
    for node in universe:
        heads.setdefault(node.site, []).append(node)
    edits = []
    for site, nodes in heads.items():
        gone = [masks[node.role] for node in nodes if node not in kept]
        stays = [masks[node.role] for node in nodes if node in kept]
        if not gone:
            continue
        where = torch.stack(gone).any(0)
        edits.append(Edit(site, means[site], where & ~torch.stack(stays).any(0) if stays else where))
    return edits


def random_circuit(circuit: Iterable[Node], universe: Sequence[Node], generator: torch.Generator) -> Circuit:
    """As many nodes per role as the circuit has, drawn from the universe."""
    found: list[Node] = []
    wanted = [node.role for node in circuit]
    for role in dict.fromkeys(sorted(wanted)):
        nodes = [node for node in universe if node.role == role]
        drawn = torch.randperm(len(nodes), generator=generator)[: wanted.count(role)]
        found += [nodes[int(index)] for index in drawn]
    return frozenset(found)


def random_accuracies(tried: Bench, circuit: Iterable[Node], *, count: int = 10, seed: int = 0) -> list[float]:
    """F of `count` random circuits with as many nodes per role."""
    generator = torch.Generator().manual_seed(seed)
    nodes = list(circuit)
    return tried.accuracies([random_circuit(nodes, tried.universe, generator) for _ in range(count)])


def faithfulness(tried: Bench, circuit: Iterable[Node]) -> float:
    """F(C) / F(M): 1 where the circuit does all that the model does, more where the rest is in its way.

    Raises:
        DataError: the model solves nothing.
    """
    whole = tried.accuracy(tried.whole)
    if whole == 0:
        raise DataError("the model solves none of the prompts: faithfulness is a share of its accuracy")
    return tried.accuracy(circuit) / whole


def minimality(
    tried: Bench,
    circuit: Iterable[Node],
    group: Callable[[Node], str] = lambda node: node.role,
    *,
    share: float = 0.3,
    progress: Progress = silent,
) -> dict[Node, float]:
    """How much each node adds once those that stand in for it are gone; the paper keeps nodes with 0.01 or more.

    Args:
        tried: the model and prompts.
        circuit: its nodes.
        group: which nodes can stand in for each other; those of one role by default.
        share: of the group that may be taken away, rounded up.
        progress: called on the way.

    Returns:
        F(C - K) / F(C - K - {h}) - 1 by node h; infinite where nothing is solved without it.
    """
    whole = frozenset(circuit)
    nodes = sorted(whole)
    pairs = [(one, other) for one in nodes for other in nodes if one != other and group(one) == group(other)]
    single = dict(zip(nodes, tried.accuracies([whole - {node} for node in nodes], progress), strict=True))
    both = dict(zip(pairs, tried.accuracies([whole - set(pair) for pair in pairs], progress), strict=True))
    found = {}
    for node in nodes:
        stands_in = {other: single[other] - both[node, other] for one, other in pairs if one == node}
        most = ceil(share * (len(stands_in) + 1))
        partners = sorted((other for other in stands_in if stands_in[other] > 0), key=lambda one: -stands_in[one])
        rest = whole - set(partners[:most])
        with_it, without = tried.accuracies([rest, rest - {node}], progress)
        found[node] = with_it / without - 1 if without else (float("inf") if with_it else 0.0)
    return found


@dataclass(frozen=True)
class Completeness:
    """What is left when nodes of the circuit are taken from the circuit, and from the model."""

    random: tuple[tuple[float, float], ...]
    """F(C - K) and F(M - K) for random subsets K of the circuit."""
    groups: Mapping[str, tuple[float, float]]
    """The same where K is a whole group."""

    @property
    def mean_gap(self) -> float:
        """Mean |F(C - K) - F(M - K)| over the random subsets; 0 for a complete circuit."""
        return sum(abs(one - other) for one, other in self.random) / len(self.random)


def completeness(
    tried: Bench,
    circuit: Iterable[Node],
    group: Callable[[Node], str] = lambda node: node.role,
    *,
    draws: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> Completeness:
    """Compare the circuit with the model where both lack some nodes of the circuit.

    Each node is taken away with probability 1/2. A circuit that loses more than the model misses what stands in for
    these nodes.
    """
    if draws < 1:
        raise UsageError(f"completeness needs at least one random subset, not {draws}")
    whole, model = frozenset(circuit), tried.whole
    nodes = sorted(whole)
    generator = torch.Generator().manual_seed(seed)
    taken = []
    for _ in range(draws):
        gone = torch.rand(len(nodes), generator=generator) < 0.5
        taken.append(frozenset(node for node, away in zip(nodes, gone.tolist(), strict=True) if away))
    names = sorted({group(node) for node in nodes})
    sets = [*taken, *(frozenset(node for node in nodes if group(node) == name) for name in names)]
    left = tried.accuracies([whole - one for one in sets], progress)
    beside = tried.accuracies([model - one for one in sets], progress)
    pairs = list(zip(left, beside, strict=True))
    return Completeness(tuple(pairs[:draws]), dict(zip(names, pairs[draws:], strict=True)))
