"""`uphold power`."""

from __future__ import annotations

from typing import Annotated

import typer

from uphold.cli.arguments import JsonOutput, share


def power(
    nfr: Annotated[
        float | None, typer.Option(parser=share, metavar="SHARE", help="The NFR that the update is thought to have.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(parser=share, metavar="SHARE", help="The gate's max_nfr, above --nfr.")
    ] = None,
    instances: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="How many instances there are.", show_default=False)
    ] = None,
    floor: Annotated[
        float | None, typer.Option(parser=share, metavar="SHARE", help="The noise floor of the NFR; 0 by default.")
    ] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Confidence, one-sided.")] = 0.95,
    chance: Annotated[float, typer.Option("--power", min=0.01, max=0.9999, help="How surely it is to be seen.")] = 0.8,
    as_json: JsonOutput = False,
) -> None:
    """How many instances a gate needs, and what a number of instances can see; exact binomial power.

    --nfr with --limit: instances to show that the limit is kept. --nfr alone: instances to see the NFR above the
    floor. --instances: the smallest NFR that so many can see.
    """
    from uphold.cli.console import print_result
    from uphold.core import stats
    from uphold.core.errors import UsageError

    if limit is not None and nfr is None:
        raise UsageError("--limit needs --nfr: what the update is thought to have, below the limit")
    if nfr is None and instances is None:
        raise UsageError("give --nfr (with --limit for a gate) to learn how many instances it takes, or --instances")
    if floor is not None and limit is not None and instances is None:
        raise UsageError("--floor says nothing about a gate's limit: leave out one of --floor and --limit")
    floor = floor or 0.0
    lines: list[str] = []
    values: dict[str, float | None] = {}
    try:
        if nfr is not None and limit is not None:
            values["instances_needed"] = needed = stats.instances_needed(nfr, limit, level, chance)
            lines.append(
                f"{needed:,} instances: an NFR of {nfr:.2%} is then shown to keep the limit of {limit:.2%} with "
                f"{chance:.0%} power, at {level:.0%} confidence"
            )
        elif nfr is not None:
            values["instances_to_see"] = enough = stats.instances_to_see(nfr, level, chance, floor)
            lines.append(
                f"{enough:,} instances: an NFR of {nfr:.2%} is then seen above a floor of {floor:.2%} with "
                f"{chance:.0%} power, at {level:.0%} confidence"
            )
        if instances is not None:
            smallest = stats.smallest_visible_rate(instances, level, chance, floor)
            values["smallest_visible_nfr"] = smallest if smallest <= 1 else None
            seen = f"an NFR of {smallest:.2%} or more" if smallest <= 1 else "no NFR at all"
            lines.append(
                f"{seen} is seen above a floor of {floor:.2%} with {instances:,} instances and {chance:.0%} power, at "
                f"{level:.0%} confidence"
            )
    except ValueError as error:
        raise UsageError(str(error)) from error
    print_result("\n".join(lines), values, as_json)
