"""`uphold patch`: weight changes that are made, applied at any strength, added up and taken off again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uphold.cli import patch_neurons, patch_signature
from uphold.cli.arguments import JsonOutput, Quiet, share

if TYPE_CHECKING:
    from uphold.models.patches.patch import Patch
    from uphold.models.patches.place import Switched

app = typer.Typer(
    help="Weight changes that can be applied at any strength, added up, and taken off again byte for byte.",
    no_args_is_help=True,
)
PatchFiles = Annotated[list[str], typer.Argument(metavar="P...", help="Patch files.", show_default=False)]
OutPatch = Annotated[Path, typer.Option("--out", help="The patch file to write (.safetensors).", show_default=False)]
Strengths = Annotated[
    list[float] | None,
    typer.Option("--strength", help="One for all patches, or one for each in their order; 1 by default."),
]


@app.callback()
def _group() -> None:
    pass


@app.command()
def make(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="The model that is to be patched.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The same model as it is to become.")],
    out: OutPatch,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Which tensors: names, globs ('model.layers.0.*') or, after re:, regular expressions; may be given "
            "often. All by default.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            parser=share, metavar="SHARE", help="Keep this share of each tensor, what changed most.", show_default=False
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Leave out changes of at most this absolute size.")] = 0.0,
    quantise: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="int8, int4, log, log:L, linear:L or tanh:L (L levels).", show_default=False),
    ] = None,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """What AFTER changed against BEFORE, as one file."""
    from uphold.cli.console import print_result, progress_to_stderr
    from uphold.models.patches.file import patch_path
    from uphold.models.patches.make import make as run
    from uphold.models.patches.text import describe_patch, patch_facts

    out = patch_path(out)
    with progress_to_stderr(quiet) as progress:
        patch = run(
            before,
            after,
            names=layers or (),
            keep=keep,
            threshold=threshold,
            quantiser=quantise,
            progress=progress,
        )
    patch.save(out)
    print_result(f"{out}: {describe_patch(patch)}", patch_facts(patch, str(out)), as_json)


@app.command()
def apply(
    patches: PatchFiles,
    to: Annotated[str, typer.Option("--to", metavar="MODEL", help="A model, adapter folder or weights file.")],
    out: Annotated[
        Path | None, typer.Option(help="Write a patched copy here; MODEL is not touched.", show_default=False)
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Patch MODEL where it lies; 'uphold patch remove' takes it off.")
    ] = False,
    strength: Strengths = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also on weights that the patch was not made from; shapes must fit.")
    ] = False,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Put patches on a model: into a copy of it, or where it lies."""
    from uphold.cli.console import progress_to_stderr
    from uphold.core.errors import UsageError
    from uphold.models.patches.copy import apply_to_copy
    from uphold.models.patches.place import apply_in_place

    if (out is None) != in_place:
        raise UsageError("say where to: --out NEW for a patched copy, or --in-place")
    loaded, strengths = _loaded(patches, force), _strengths(patches, strength)
    options: dict[str, Any] = {"files": [Path(path).name for path in patches], "force": force}
    with progress_to_stderr(quiet) as progress:
        if out is not None:
            done = apply_to_copy(to, loaded, out, strengths, progress=progress, **options)
        else:
            done = apply_in_place(to, loaded, strengths, progress=progress, **options)
    _print_switched(done, as_json)


@app.command()
def remove(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What was patched in place.", show_default=False)],
    patches: Annotated[
        list[str] | None,
        typer.Argument(metavar="P...", help="Patch files, or the ids that 'show' lists.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Take all patches off.")] = False,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Take patches off again, in any order. Without the last one, every byte is as before the first."""
    from uphold.cli.console import progress_to_stderr
    from uphold.core.errors import UsageError
    from uphold.models.patches.place import remove_in_place

    if bool(patches) == everything:
        raise UsageError("say which patches to take off, or --all")
    with progress_to_stderr(quiet) as progress:
        done = remove_in_place(model, None if everything else patches, progress=progress)
    _print_switched(done, as_json)


@app.command()
def compose(
    patches: PatchFiles,
    out: OutPatch,
    strength: Strengths = None,
    force: Annotated[bool, typer.Option("--force", help="Also patches that were made from different weights.")] = False,
    as_json: JsonOutput = False,
) -> None:
    """Add patches up to one; applied, it gives the same bits as they do together."""
    from uphold.cli.console import print_result
    from uphold.core.errors import UsageError
    from uphold.models.patches.file import patch_path
    from uphold.models.patches.patch import compose as run
    from uphold.models.patches.text import describe_patch, patch_facts

    out = patch_path(out)
    if out.resolve() in {Path(path).resolve() for path in patches}:
        raise UsageError(f"{out} is one of the patches that are added up: name another file with --out")
    patch = run(_loaded(patches, force), _strengths(patches, strength), force=force)
    patch.save(out)
    print_result(f"{out}: {describe_patch(patch)}", patch_facts(patch, str(out)), as_json)


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="P|MODEL", help="A patch file or a model.", show_default=False)],
    as_json: JsonOutput = False,
) -> None:
    """What a patch holds, or which patches are on a model."""
    from uphold.cli.console import print_result
    from uphold.models.checkpoint import read_header
    from uphold.models.patches.file import is_patch, load_patch
    from uphold.models.patches.place import applied_to
    from uphold.models.patches.text import describe_entries, patch_facts, patch_table

    if is_patch(what):
        patch = load_patch(what)
        print_result(patch_table(patch), patch_facts(patch, what), as_json)
        return
    entries = applied_to(what)
    path = Path(what)
    if path.is_file() and path.suffix == ".safetensors":
        read_header(path)  # A file that is cut off may be a patch as well as a model without one.
    facts = [one.facts() | {"patch": patch_facts(one.patch, one.file)} for one in entries]
    print_result(describe_entries(what, entries), {"model": what, "applied": facts}, as_json)


app.command("signature")(patch_signature.signature)
app.command("neurons")(patch_neurons.neurons)


def _loaded(paths: list[str], force: bool) -> list[Patch]:
    from uphold.models.patches.file import load_patch
    from uphold.repair.signatures import check_same_start

    patches = [load_patch(path) for path in paths]
    if not force:
        check_same_start(patches)
    return patches


def _strengths(patches: list[str], given: list[float] | None) -> list[float] | None:
    return given * len(patches) if given is not None and len(given) == 1 else given or None


def _print_switched(done: Switched, as_json: bool) -> None:
    from uphold.cli.console import print_result
    from uphold.models.patches.text import describe_switched

    values = {
        "path": str(done.path),
        "applied": [one.facts() for one in done.applied],
        "files": list(done.files),
        "restored": list(done.restored),
        "asked": done.asked,
        "lost": done.lost,
    }
    print_result(describe_switched(done), values, as_json)
