"""Which neurons to edit: scores of all of them in some layers, and the highest as candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uphold.models.neurons.config import Locate
from uphold.models.neurons.context import Context
from uphold.models.neurons.neurons import Down


@dataclass(frozen=True)
class Neuron:
    """A candidate."""

    down: Down
    index: int
    score: float


def candidates(context: Context, target: int, pool: int, locate: Locate, generator: torch.Generator) -> list[Neuron]:
    """The `pool` neurons with the highest scores over all layers of `context`, the highest first.

    A neuron that is scored 0, such as one that is not active anywhere, is none: editing it would change nothing.

    Args:
        context: where the wrong token comes.
        target: the right token.
        pool: how many at most.
        locate: how they are scored.
        generator: of random scores, on the CPU.
    """
    scores = [one.cpu() for one in neuron_scores(context, target, locate, generator)]
    joined = torch.cat(scores)
    order = joined.argsort(descending=True, stable=True)[:pool]
    starts = torch.tensor([0, *(len(one) for one in scores)]).cumsum(0)
    found = []
    for place in order.tolist():
        layer = int(torch.searchsorted(starts, place, right=True)) - 1
        score = float(joined[place])
        if score > 0:
            found.append(Neuron(context.downs[layer], int(place - starts[layer]), score))
    return found


def neuron_scores(context: Context, target: int, locate: Locate, generator: torch.Generator) -> Sequence[torch.Tensor]:
    """Scores of the neurons of each layer of `context`, shapes (m,), all at least 0.

    `attribution` is the Euclidean norm over positions of activation times gradient, that of the target's
    log-probability: the paper's, of its probability, is a multiple of it by one number and orders neurons alike.
    """
    if locate == "random":
        return [torch.rand(down.width, generator=generator) for down in context.downs]
    pairs = context.gradients(lambda logits: logits.log_softmax(-1)[target])
    if locate == "activation":
        return [activation.float().norm(dim=0) for activation, _ in pairs]
    return [(activation.float() * gradient.float()).norm(dim=0) for activation, gradient in pairs]
