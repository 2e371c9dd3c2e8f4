"""Wrapper or change: whether fine-tuning covered, altered or deleted a skill.

Jain et al., "Mechanistically Analyzing the Effects of Fine-Tuning on Procedurally Defined Tasks", arXiv:2311.12786.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uphold.core.progress import Progress, silent
from uphold.core.registry import explain
from uphold.explain.wrappers.config import WrapperConfig

if TYPE_CHECKING:
    from torch import nn

    from uphold.explain.wrappers.result import WrapperResult
    from uphold.explain.wrappers.skill import Skill, Source

PAPER = "arXiv:2311.12786"


@explain("wrapper", paper=PAPER)
def wrapper(
    old: Any,
    new: Any,
    old_skill: Skill,
    new_skills: Sequence[Skill],
    learn: Source,
    *,
    fresh: Callable[[int], nn.Module] | None = None,
    controls: Mapping[str, Callable[[int], nn.Module]] | None = None,
    sites: Sequence[str] | None = None,
    config: WrapperConfig | None = None,
    progress: Progress = silent,
) -> WrapperResult:
    """Say whether an update left a skill unchanged, wrapped, altered or deleted.

    Behaviour, revival by pruning, linear probes, relearning beside controls, and scaling of the weight change. No
    model is changed.

    Args:
        old: the model before the update: a module, or a reference that `uphold.models.load.load` takes; None where
            `new` is a base with a low-rank adapter, which is then switched off.
        new: the model after it.
        old_skill: instances of the skill that may have gone, only to measure on.
        new_skills: instances of what the update is for, and other skills to measure beside it.
        learn: instances of the old skill that are not in `old_skill`: a fixed set, or a function of a seed that gives
            a batch. Pruning, probes and relearning go by them.
        fresh: gives an untrained model of the same shape for a seed: the floor of the probes, and a control.
        controls: more controls of relearning by name, such as `tuned_control` on the new skill: "scratch + FT".
        sites: where to probe, such as `residual.3`; the residual stream around every block where None.
        config: the options.
        progress: called on the way.

    Raises:
        DataError: the old model does not have the old skill.
        UsageError: options and models do not fit together; a control has the name of another arm.
        ModelError: the versions do not have the same tensors; a site is not found; training diverges.
    """
    from uphold.explain.wrappers.diagnose import Update, diagnose
    from uphold.models.load import load_module
    from uphold.models.sites.site import parse_site

    update = Update(
        old=None if old is None else load_module(old),
        new=load_module(new),
        old_skill=old_skill,
        new_skills=new_skills,
        learn=learn,
        fresh=fresh,
        controls=controls or {},
        sites=None if sites is None else [parse_site(site) for site in sites],
        config=config or WrapperConfig(),
    )
    return diagnose(update, progress)
