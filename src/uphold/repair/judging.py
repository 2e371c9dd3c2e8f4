"""Who was right: frozen models judged by their recorded answers, or token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from uphold.core.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import torch

    from uphold.models.load import Loaded
    from uphold.models.rules import Tokens
    from uphold.models.train import Select
    from uphold.repair.protocol import Setting

Judge = Literal["instance", "token"]


@dataclass(frozen=True, eq=False)
class Rightness:
    """How right one frozen model is about what each trained token belongs to."""

    teacher: int
    """Its number among the teachers."""
    scores: torch.Tensor | None = None
    """Its score in [0, 1] on every instance of the train split, in the split's order; each token gets that of its
    instance. None: a token counts as right where it is the model's most likely one."""

    def __call__(self, tokens: Tokens) -> torch.Tensor:
        """Values in [0, 1], shape (n,)."""
        if self.scores is None:
            return tokens.teachers[self.teacher].right.to(tokens.none.dtype)
        return self.scores.to(tokens.none)[tokens.trained.instance]


def recorded(setting: Setting, model: Loaded, teacher: int, judge: Judge, what: str) -> Rightness:
    """The rightness of `model`, from its answers on the train split where `judge` asks for instances.

    Args:
        setting: gives the task, and the store that answers are kept in.
        model: who is judged.
        teacher: its number among the teachers.
        judge: by instance or by token.
        what: how progress calls the evaluation.
    """
    if judge == "token":
        return Rightness(teacher)
    import torch

    return Rightness(teacher, torch.tensor(setting.scores(model, "train", what)))


def check_judge(judge: Judge, select: Select) -> None:
    """Refuse what cannot be judged.

    Raises:
        UsageError: no such judge, or epochs are to be chosen by a loss that needs answers to validation instances.
    """
    if judge not in get_args(Judge):
        raise unknown_name("judge", judge, get_args(Judge))
    if judge == "instance" and select == "loss":
        raise UsageError(
            "judging by instance knows the answers to the train split only, and select 'loss' needs those to the "
            "validation split: choose select 'nfr', 'accuracy' or 'last', or judge 'token'"
        )
