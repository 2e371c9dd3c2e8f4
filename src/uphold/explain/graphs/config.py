"""Options of causal graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from uphold.core.errors import UsageError, unknown_name

Replace = Literal["zero", "soft", "mean"]
Outcome = Literal["logit", "centred-logit"]
PAPER = "arXiv:2305.08950"


@dataclass(frozen=True)
class GraphConfig:
    """How the graph of a class is found."""

    replace: Replace = "zero"
    """What a cut edge has instead: weight 0; a weight drawn once per layer from U(beta, beta + 0.01); or its own weight
    with the unit's activation at its mean over the images, place by place."""
    beta: float = 0.0
    """Of `replace="soft"`."""
    samples: int = 100
    """Images at most, the first that the model gets right."""
    alpha: float = 0.05
    """False discovery rate over the units of a layer (Benjamini-Hochberg)."""
    min_effect: float = 0.01
    """Mean drop of the outcome that makes a unit a cause, as a share of the mean centred logit of the class."""
    outcome: Outcome = "logit"
    """What is to drop: the logit of the class, or that minus the mean of all logits."""
    compat: Literal["authors"] | None = None
    """"authors": their unpaired z-test at 1.65 standard errors with their fallbacks, in place of the paired test;
    `alpha`, `min_effect` and `outcome` do not count then."""
    screen: int | None = None
    """Only so many units of a layer, those with the largest first-order estimates, are cut; all where None."""
    test_input: bool = False
    """Test the channels of the images like other units; otherwise all of them are causes."""
    edges: bool = True
    """Cut every edge of the graph by itself as well and note what it does."""
    batch: int = 1024
    """Rows in one forward pass, over cuts and images."""
    seed: int = 0
    """Of the draw of `replace="soft"`."""

    def __post_init__(self) -> None:
        for name, value, known in (("replace", self.replace, Replace), ("outcome", self.outcome, Outcome)):
            if value not in get_args(known):
                raise unknown_name(name, value, get_args(known))
        if self.compat not in (None, "authors"):
            raise unknown_name("compat", self.compat, ["authors"])
        if not 0 < self.alpha < 1:
            raise UsageError(f"causal graphs need alpha between 0 and 1, not {self.alpha}")
        if not self.min_effect >= 0:
            raise UsageError(f"causal graphs need min_effect of 0 or more, not {self.min_effect}")
        for name in ("samples", "batch", "screen"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"causal graphs need {name} of 1 or more, not {value}")
