"""`uphold patch signature`: a patch out of a clean and a robust training of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uphold.cli.arguments import JsonOutput, Quiet


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
        str, typer.Option(metavar="N|NAME,...", help="The first N layers in forward order, or modules by name.")
    ] = "7",
    quantise: Annotated[
        str, typer.Option(metavar="HOW", help="int8, int4, linear:L or log:L.", show_default="float32")
    ] = "",
    strength: Annotated[float, typer.Option(help="Multiplies the signature.")] = 1.0,
    authors: Annotated[
        bool, typer.Option("--authors", help="Multiply by the strength twice, as their code does.")
    ] = False,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Robust weight signature: what robust training changed beside clean training (arXiv:2302.12480).

    The three are model folders, embedded or hub models, or single weight files. The head, the last layer, is never
    counted.
    """
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.models.patches.text import describe_patch, patch_facts
    from uphold.repair.signatures import layer_sizes
    from uphold.repair.signatures import signature as make

    chosen = int(layers) if layers.isdecimal() else [name for name in layers.split(",") if name]
    with progress_to_stderr(quiet) as progress:
        patch = make(
            initial,
            standard,
            robust,
            layers=chosen,
            quantiser=quantise,
            strength=strength,
            compat="authors" if authors else "paper",
            progress=progress,
        )
    patch.save(out)
    sizes = layer_sizes(patch)
    width = max(len("layer"), *map(len, sizes))
    rows = [f"  {'layer':<{width}}  |R| / |w|", *(f"  {name:<{width}}  {one:9.4f}" for name, one in sizes.items())]
    finite = {name: one if one < float("inf") else None for name, one in sizes.items()}
    text = "\n".join([f"{out}: {describe_patch(patch)}", *rows])
    if not any(one["share"] for one in patch.manifest.facts["projection"].values()):
        say("remark: STANDARD is INITIAL in these layers, so nothing was projected out: this is ROBUST minus INITIAL")
    print_result(text, {**patch_facts(patch, str(out)), "sizes": finite}, as_json)
