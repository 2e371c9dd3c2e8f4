"""`uphold patch signature`: a patch out of a clean and a robust training of one model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uphold.cli.arguments import JsonOutput, Quiet, share

if TYPE_CHECKING:
    from uphold.models.patches.patch import Patch
    from uphold.repair.signature_choice import Choice

_LAYERS = 7
_BUDGET = 0.02


def signature(
    initial: Annotated[
        str, typer.Argument(metavar="INITIAL", help="What both trainings started from.", show_default=False)
    ],
    standard: Annotated[
        str, typer.Argument(metavar="STANDARD", help="After training on clean data.", show_default=False)
    ],
    robust: Annotated[
        str, typer.Argument(metavar="ROBUST", help="After training on damaged data.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The patch, a .safetensors file.", show_default=False)],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="N|NAME,...",
            help="The first N layers in forward order, or modules by name.",
            show_default=str(_LAYERS),
        ),
    ] = None,
    quantise: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="int8, int4, log, log:L, linear:L or tanh:L (L levels).", show_default="float32"
        ),
    ] = "",
    strength: Annotated[float | None, typer.Option(help="Multiplies the signature.", show_default="1.0")] = None,
    authors: Annotated[
        bool, typer.Option("--authors", help="Multiply by the strength twice, as their code does.")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="Choose layers and strength on validation: the task of clean prompts ('uphold tasks' lists some).",
            show_default=False,
        ),
    ] = None,
    damaged_task: Annotated[
        str | None, typer.Option(help="The task of damaged prompts; goes with --task.", show_default=False)
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="Score on --task that may be lost.",
            show_default="2%",
        ),
    ] = None,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Robust weight signature: what robust training changed beside clean training (arXiv:2302.12480).

    The three are model or adapter folders, embedded or hub models, or single weight files.
    The head, the last layer, is never counted. The result is a patch: see 'uphold patch apply'.
    With --task, ends with 3 where nothing within the budget helps; no patch is written then.
    """
    from uphold.cli.console import print_result, progress_to_stderr
    from uphold.core.errors import UsageError
    from uphold.models.patches.file import patch_path
    from uphold.repair.signature_choice import choose_on_tasks
    from uphold.repair.signatures import signature as make

    out = patch_path(out)
    if task is None or damaged_task is None:
        if task or damaged_task or budget is not None:
            raise UsageError("a choice on validation needs --task and --damaged-task, both")
    elif layers is not None or strength is not None or authors:
        raise UsageError("--task chooses layers and strength: leave out --layers, --strength and --authors")
    choice = None
    with progress_to_stderr(quiet) as progress:
        if task is not None and damaged_task is not None:
            most = _BUDGET if budget is None else budget
            choice = choose_on_tasks(
                initial, standard, robust, task, damaged_task, budget=most, quantiser=quantise, progress=progress
            )
            patch = choice.patch
        else:
            patch = make(
                initial,
                standard,
                robust,
                layers=_layers(layers),
                quantiser=quantise,
                strength=1.0 if strength is None else strength,
                compat="authors" if authors else "paper",
                progress=progress,
            )
    if patch is None:
        assert choice is not None
        print_result(str(choice), {"choice": choice.to_dict()}, as_json)
        raise typer.Exit(3)
    patch.save(out)
    _print(patch, choice, out, as_json)


def _layers(given: str | None) -> int | list[str]:
    if given is None:
        return _LAYERS
    return int(given) if given.isdecimal() else [name for name in given.split(",") if name]


def _print(patch: Patch, choice: Choice | None, out: Path, as_json: bool) -> None:
    from uphold.cli.console import print_result, say
    from uphold.models.patches.text import describe_patch, patch_facts
    from uphold.repair.signatures import foreign_layers, layer_sizes

    sizes = layer_sizes(patch)
    width = max(len("layer"), *map(len, sizes))
    lines = [str(choice)] if choice else []
    lines.append(f"{out}: {describe_patch(patch)}")
    if patch.manifest.scale != 1:
        lines.append(f"  counts {patch.manifest.scale:g} times wherever it is applied at strength 1")
    lines += [f"  {'layer':<{width}}  |R| / |w|", *(f"  {name:<{width}}  {one:9.4f}" for name, one in sizes.items())]
    if not any(one["share"] for one in patch.manifest.facts["projection"].values()):
        say("remark: STANDARD is INITIAL in these layers, so nothing was projected out: this is ROBUST minus INITIAL")
    if large := foreign_layers(patch):
        say(
            f"remark: in {', '.join(large[:3])}{', ...' if large[3:] else ''} the signature is about as large as the "
            "weights: were STANDARD and ROBUST both trained from INITIAL?"
        )
    values = {
        **patch_facts(patch, str(out)),
        "sizes": {name: one if math.isfinite(one) else None for name, one in sizes.items()},
        "choice": choice.to_dict() if choice else None,
    }
    print_result("\n".join(lines), values, as_json)
