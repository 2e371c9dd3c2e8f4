"""Models cut into consecutive stages, for replacing or training one of them: see `uphold.repair.replace_stage`."""

from uphold.models.stages.build import Blueprint as Blueprint
from uphold.models.stages.build import decoder_blueprint as decoder_blueprint
from uphold.models.stages.data import Classification as Classification
from uphold.models.stages.data import Examples as Examples
from uphold.models.stages.data import NextToken as NextToken
from uphold.models.stages.stages import Stages as Stages
from uphold.models.stages.training import FineTuning as FineTuning
from uphold.models.stages.training import Training as Training

__all__ = [
    "Blueprint",
    "Classification",
    "Examples",
    "FineTuning",
    "NextToken",
    "Stages",
    "Training",
    "decoder_blueprint",
]
