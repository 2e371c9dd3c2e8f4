"""Model cards of adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from uphold.repair.result import Repair

if TYPE_CHECKING:
    from collections.abc import Sequence

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def card_header(base: str, tags: Sequence[str] = ()) -> str:
    """The YAML header of an adapter's card; a base that is no hub id is left to the text."""
    import yaml

    facts: dict[str, object] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model_relation": "adapter",
        "tags": ["lora", "transformers", "uphold", *tags],
    }
    hub_id = base.partition("@")[0]
    if _HUB_ID.fullmatch(hub_id) and not Path(base).exists():
        facts["base_model"] = hub_id
    return f"---\n{yaml.safe_dump(facts, sort_keys=True)}---\n"


def repair_card(repair: Repair, base: str) -> str:
    """The card of a repaired adapter: what regressed, what was repaired, and how it was measured."""
    header, *rows = repair.table()
    before = repair.before
    lines = [
        card_header(base, [repair.method]),
        f"# Compatibility adapter by {repair.method}",
        "",
        f"Repairs the update from `{before.old.name}` to `{before.new.name}` on the task "
        f"`{before.new.fingerprint['task']['name']}` ({repair.paper}). Measured on {before.count} held-out test "
        "instances; NFR counts what the old model gets right and the other gets wrong, over all instances.",
        "",
        "| " + " | ".join(cell or "model" if index == 0 else cell for index, cell in enumerate(header)) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"Splits: {', '.join(f'{name} {size}' for name, size in repair.splits.items())}; they share no instance.",
        "",
        "Options: " + ", ".join(f"{key} {value}" for key, value in repair.config.items()) + ".",
        *(f"\nNote: {note}." for note in repair.notes),
    ]
    return "\n".join(lines) + "\n"
