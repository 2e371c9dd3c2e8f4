"""Patches: changes of weights that can be applied at any strength, added up, and taken off again byte for byte.

from uphold import patch

change = patch.make("embedded:v1", "embedded:v2", keep=0.1)
with patch.apply(model, change, 0.5):
...
"""

from uphold.models.neurons.config import Failure as Failure
from uphold.models.neurons.config import Guard as Guard
from uphold.models.neurons.config import NeuronConfig as NeuronConfig
from uphold.models.neurons.repair import repair_failures as repair_failures
from uphold.models.patches.apply import Applied as Applied
from uphold.models.patches.apply import apply as apply
from uphold.models.patches.copy import apply_to_copy as apply_to_copy
from uphold.models.patches.file import load_patch as load
from uphold.models.patches.make import make as make
from uphold.models.patches.patch import Manifest as Manifest
from uphold.models.patches.patch import Patch as Patch
from uphold.models.patches.patch import compose as compose
from uphold.models.patches.patch import quantised as quantised
from uphold.models.patches.patch import scale as scale
from uphold.models.patches.place import applied_to as applied_to
from uphold.models.patches.place import apply_in_place as apply_in_place
from uphold.models.patches.place import remove_in_place as remove_in_place

__all__ = [
    "Applied",
    "Failure",
    "Guard",
    "Manifest",
    "NeuronConfig",
    "Patch",
    "applied_to",
    "apply",
    "apply_in_place",
    "apply_to_copy",
    "compose",
    "load",
    "make",
    "quantised",
    "remove_in_place",
    "repair_failures",
    "scale",
]
