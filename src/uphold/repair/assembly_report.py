"""What incubation costs, how well its modules fit together, and what a replaced stage changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from uphold.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from uphold.core.stats import Interval
    from uphold.models.stages.data import Examples, Objective
    from uphold.models.stages.stages import Stages

_CKA_ROWS = 512
"""Instances whose activations are compared at most."""


@dataclass(frozen=True)
class Cost:
    """Blocks that a sample passes, counted: a forward pass costs 1 per block, weights' and inputs' gradients 1 each."""

    jobs: tuple[int, ...]
    """Forward passes of each incubation, without its kept prefix."""
    end_to_end: int
    """Forward passes of training the target as a whole: its depth."""
    units: tuple[int, ...]
    """Forward and backward of each incubation."""
    end_to_end_units: int
    """Forward and backward of the target as a whole: three times its depth."""

    @property
    def ratio(self) -> float:
        """All incubations against the whole, forward blocks."""
        return sum(self.jobs) / self.end_to_end

    @property
    def units_ratio(self) -> float:
        """All incubations against the whole, forward and backward."""
        return sum(self.units) / self.end_to_end_units


def cost(depths: Sequence[int], meta_depths: Sequence[int] | None = None, *, cached: bool = False) -> Cost:
    """What an epoch of incubation costs, in blocks per sample (section 6, check 9 and 10 of the method's analysis).

    A job passes target_i + sum_{j != i} meta_j blocks; the first block's input gradient is counted, for simplicity.

    Args:
        depths: blocks in each stage of the target.
        meta_depths: of the meta model; None: one each.
        cached: what each stage reads is kept, so that the blocks in front of it are not passed.

    Raises:
        UsageError: the two do not have one number for each stage.
    """
    small = list(meta_depths) if meta_depths is not None else [1] * len(depths)
    if len(small) != len(depths) or min([*depths, *small], default=0) < 1:
        raise UsageError(f"depths {list(depths)} and meta depths {small}: expected one number of at least 1 per stage")
    jobs, units = [], []
    for stage, depth in enumerate(depths):
        before, after = sum(small[:stage]), sum(small[stage + 1 :])
        forward = depth + after + (0 if cached else before)
        jobs.append(forward)
        units.append(forward + 2 * depth + after)
    return Cost(tuple(jobs), sum(depths), tuple(units), 3 * sum(depths))


@dataclass(frozen=True)
class Compatibility:
    """How well separately trained stages fit together; measured before the fine-tune."""

    count: int
    """Instances."""
    meta: float
    """Share that the meta model gets right."""
    hybrids: tuple[float, ...]
    """Share that the meta model gets right with one stage replaced, for each stage."""
    assembled: float
    """Share that the assembled model gets right."""
    interval: Interval
    """Wilson interval of `assembled`, 95%."""
    cka: tuple[float | None, ...]
    """Linear CKA between assembled and meta model of what stages 1, 2, ... read, in [0, 1]; None where the activations
    of all instances are equal."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        hybrids = "  ".join(f"{share:.1%}" for share in self.hybrids)
        cka = "  ".join("-" if one is None else f"{one:.2f}" for one in self.cka)
        low, high = self.interval
        return (
            f"meta model {self.meta:.1%}; with one stage replaced {hybrids}\n"
            f"assembled {self.assembled:.1%} [{low:.1%}, {high:.1%}], {self.count} instances\n"
            f"CKA with the meta model in front of stages 1...: {cka or '-'}"
        )


def compatibility(
    meta: Stages, assembled: Stages, examples: Examples, objective: Objective | None = None
) -> Compatibility:
    """Measure how well the assembled stages fit together.

    Args:
        meta: the model that the stages were trained against.
        assembled: the model of all of them.
        examples: what to measure on; not what was trained on.
        objective: what counts as right; None: classification.

    Raises:
        UsageError: the models are not cut alike.
    """
    from uphold.core.stats import Interval, proportion_interval
    from uphold.models.stages.boundary import boundaries
    from uphold.models.stages.data import Classification, correct
    from uphold.models.stages.stages import compose

    objective = objective or Classification()

    def share(stages: Stages) -> float:
        return int(correct(stages.model, examples, objective).sum()) / len(examples)

    hybrids = []
    for stage in range(meta.count):
        hybrids.append(share(compose([assembled if number == stage else meta for number in range(meta.count)])))
    right = int(correct(assembled.model, examples, objective).sum())
    rows = examples.inputs[:_CKA_ROWS]
    pairs = zip(boundaries(meta, rows), boundaries(assembled, rows), strict=True)
    return Compatibility(
        len(examples),
        share(meta),
        tuple(hybrids),
        right / len(examples),
        Interval(*proportion_interval(right, len(examples), method="wilson")),
        tuple(linear_cka(one, other) for one, other in pairs),
    )


def linear_cka(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Linear centred kernel alignment of two sets of activations, in [0, 1].

    |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms, columns centred (Kornblith et al., ICML 2019, Eq. 3 and 5). Computed from
    the n x n Gram matrices in float64.

    Args:
        one: shape (n, ...), flattened to n rows.
        other: likewise, of any other width.

    Returns:
        None where the rows of one of them are all equal: there is nothing to align.

    Raises:
        UsageError: they have different numbers of rows.
    """
    if len(one) != len(other):
        raise UsageError(f"activations of {len(one)} and of {len(other)} instances cannot be compared")
    first, second = (_gram(values) for values in (one, other))
    norms = float(first.norm() * second.norm())
    return float((first * second).sum()) / norms if norms > 0 else None


def _gram(values: torch.Tensor) -> torch.Tensor:
    flat = values.detach().cpu().double().flatten(1)
    equal = bool((flat == flat[:1]).all())
    centred = flat - flat.mean(0)
    # Rounding leaves a mean that is not quite the common value.
    return (centred * 0 if equal else centred) @ centred.T


@dataclass(frozen=True)
class Paired:
    """Two models on the same instances, right or wrong."""

    count: int
    old: float
    """Accuracy of the old model."""
    new: float
    """Accuracy of the new model."""
    negative_flips: int
    """Right before, wrong now."""
    positive_flips: int
    """Wrong before, right now."""
    interval: Interval
    """Of new - old, 95% (Tango's score interval)."""
    p_value: float
    """Exact McNemar test, two-sided."""

    @classmethod
    def of(cls, old: torch.Tensor, new: torch.Tensor) -> Paired:
        """From what each model got right, booleans of shape (n,)."""
        from uphold.core.stats import mcnemar_exact, paired_difference_interval

        both, lost, won = (int((one & other).sum()) for one, other in ((old, new), (old, ~new), (~old, new)))
        total = len(old)
        return cls(
            total,
            (both + lost) / total,
            (both + won) / total,
            lost,
            won,
            paired_difference_interval(both, lost, won, total - both - lost - won),
            mcnemar_exact(lost, won),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.old:.1%} -> {self.new:.1%} (difference {100 * low:+.1f} to {100 * high:+.1f} points, "
            f"p = {self.p_value:.2g}); {self.negative_flips} lost, {self.positive_flips} won of {self.count}"
        )
