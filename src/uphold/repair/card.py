"""Model cards of adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from uphold.repair.result import Form, Repair

if TYPE_CHECKING:
    from collections.abc import Sequence

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def card_header(base: str, tags: Sequence[str] = (), form: Form = "adapter") -> str:
    """The YAML header of a card; a base that is no hub id is left to the text.

    Args:
        base: what an adapter is for, or what weights or a pair were made from.
        tags: beside the usual ones.
        form: what the card is of.
    """
    import yaml

    library, relation, kind = {
        "adapter": ("peft", "adapter", ["lora"]),
        "weights": ("transformers", "merge", ["merge"]),
        "pair": ("uphold", "merge", ["ensemble"]),
    }[form]
    facts: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "base_model_relation": relation,
        "tags": [*kind, "transformers", "uphold", *tags],
    }
    hub_id = base.partition("@")[0]
    if _HUB_ID.fullmatch(hub_id) and not Path(base).exists():
        facts["base_model"] = hub_id
    return f"---\n{yaml.safe_dump(facts, sort_keys=True)}---\n"


def repair_card(repair: Repair, base: str) -> str:
    """The card of what a repair deploys: what regressed, what was repaired, and how it was measured."""
    header, *rows = repair.table()
    before = repair.before
    title = {
        "adapter": "Compatibility adapter",
        "weights": "Repaired weights",
        "pair": "Old and new model together",
    }[repair.form]
    lines = [
        card_header(base, [repair.method], repair.form),
        f"# {title} by {repair.method}",
        "",
        f"Repairs the update from `{before.old.name}` to `{before.new.name}` on the task "
        f"`{before.new.fingerprint['task']['name']}`{f' ({repair.paper})' if repair.paper else ''}. Measured on "
        f"{before.count} held-out test instances; NFR counts what the old model gets right and the other gets wrong, "
        "over all instances.",
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
