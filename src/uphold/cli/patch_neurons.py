"""`uphold patch neurons`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uphold.cli.arguments import JsonOutput, Quiet
from uphold.cli.options import with_config_options
from uphold.models.neurons.config import NeuronConfig

if TYPE_CHECKING:
    from uphold.models.encode import Encoder
    from uphold.models.neurons.config import Failure, Guard
    from uphold.models.neurons.guard import Drift
    from uphold.models.neurons.report import FailureReport, NeuronReport

_WINDOW = 128
"""Tokens of a text of the guard set that are read together."""
_SHOWN = 40
"""Characters of a prompt's end, and of what follows it, that a table shows."""


def _neurons(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What continues the prompts wrongly.")],
    failures: Annotated[
        Path, typer.Option(help='JSONL: {"prompt": ..., "target": ...}, and "paraphrases": [...] where you have some.')
    ],
    out: Annotated[Path, typer.Option("--out", help="The patch file to write (.safetensors).", show_default=False)],
    guard: Annotated[
        Path | None,
        typer.Option(
            help="What must stay as it is: a text file of any kind, or JSONL of texts or of prompts with targets.",
            show_default=False,
        ),
    ] = None,
    guard_tokens: Annotated[int, typer.Option(min=1, help="Read so many tokens of the guard set, the first.")] = 4096,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
    overrides: Any = None,
) -> None:
    """Repair wrong next tokens by editing a few feed-forward neurons (MINT, arXiv:2312.05356).

    Interrupted, the same command goes on where it stopped. Ends with 3 where nothing was repaired.
    """
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.models.adapter import is_adapted
    from uphold.models.attention import max_length
    from uphold.models.encode import Encoder
    from uphold.models.load import check_single, load
    from uphold.models.neurons.repair import repair_failures
    from uphold.models.patches.file import patch_path
    from uphold.models.weights import merged

    out = patch_path(out)
    config = NeuronConfig(**(overrides or {}))
    rows = _read_failures(failures)
    texts = _read_guard(guard) if guard is not None else []
    loaded = load(model)
    check_single(loaded)
    if is_adapted(loaded):
        say("the adapter is merged into the weights: the patch is for the merged model")
        loaded = loaded._replace(model=merged(loaded.model), files=None)
    encoder = Encoder(loaded.tokenizer)
    wanted = [_failure(encoder, row, number) for number, row in enumerate(rows, start=1)]
    window = min(_WINDOW, max_length(loaded.model) or _WINDOW)
    watched = _guard(encoder, texts, guard_tokens, window) if texts else None
    journal = out.with_name(f"{out.name}.journal")
    with progress_to_stderr(quiet) as progress:
        patch, report = repair_failures(loaded, wanted, config, guard=watched, journal=journal, progress=progress)
    if patch is not None:
        patch.save(out)
    journal.unlink(missing_ok=True)
    text = "\n".join([*_table(report, loaded.tokenizer), *_side_effects(report)])
    end = f"{out}: {report.count('repaired')} of {len(wanted)} failures repaired" if patch else "nothing was repaired"
    print_result(f"{text}\n{end}", report.to_dict() | {"patch": str(out) if patch else None}, as_json)
    if patch is None:
        raise typer.Exit(3)


neurons = with_config_options(_neurons, NeuronConfig)


def _read_failures(path: Path) -> list[dict[str, Any]]:
    from uphold.core.errors import DataError

    rows = _read_jsonl(path)
    for place, row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("target"), str)):
            raise DataError(f'{place}: expected {{"prompt": "...", "target": "..."}}, found {str(row)[:60]}')
        others = row.get("paraphrases", [])
        if not isinstance(others, list) or not all(isinstance(one, str) for one in others):
            raise DataError(f"{place}: paraphrases must be a list of prompts, found {str(others)[:60]}")
        unknown = sorted(row.keys() - {"prompt", "target", "paraphrases", "name"})
        if unknown:
            raise DataError(f"{place}: unknown field '{unknown[0]}'; there are prompt, target, paraphrases and name")
    return [row for _, row in rows]


def _read_guard(path: Path) -> list[tuple[str, str]]:
    """(prompt, target) pairs; a whole text has an empty prompt."""
    from uphold.core.errors import DataError, EmptyError

    lines = _read_jsonl(path) if path.suffix == ".jsonl" else [(str(path), "\n".join(_lines(path)))]
    pairs = []
    for place, row in lines:
        if isinstance(row, str):
            pairs.append(("", row))
        elif isinstance(row, dict) and isinstance(row.get("text"), str):
            pairs.append(("", row["text"]))
        elif isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("target"), str):
            pairs.append((row["prompt"], row["target"]))
        else:
            raise DataError(f'{place}: expected a text, {{"text": ...}} or {{"prompt": ..., "target": ...}}')
    if not any(prompt + target for prompt, target in pairs):
        raise EmptyError(f"the guard set {path} is empty: give it texts, or leave out --guard")
    return pairs


def _read_jsonl(path: Path) -> list[tuple[str, Any]]:
    import json

    from uphold.core.errors import CorruptError, EmptyError

    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{path}:{number}", json.loads(line)))
        except ValueError as error:
            raise CorruptError(f"{path}:{number} is not JSON ({error}); expected one object per line") from error
    if not rows:
        raise EmptyError(f"{path} is empty: expected one JSON object per line")
    return rows


def _lines(path: Path) -> list[str]:
    from uphold.core.errors import CorruptError, DataError

    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path} is not UTF-8 text: convert it") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _failure(encoder: Encoder, row: dict[str, Any], number: int) -> Failure:
    """Prompt and target tokenised as one text, so that the ids are those the model would see."""
    from uphold.models.neurons.config import Failure

    first, *others = encoder.pairs([(prompt, row["target"]) for prompt in (row["prompt"], *row.get("paraphrases", []))])
    # White space at a prompt's end belongs to the answer; a paraphrase must not change what is asked for.
    paraphrases = [tuple(one.prompt) for one in others if one.answer == first.answer]
    if len(paraphrases) < len(others):
        from uphold.core.errors import DataError

        raise DataError(
            f"failure {number}: behind a paraphrase the target is other tokens than behind the prompt: end both alike, "
            "with or without a space"
        )
    return Failure(tuple(first.prompt), tuple(first.answer), tuple(paraphrases), str(row.get("name", number)))


def _guard(encoder: Encoder, texts: Sequence[tuple[str, str]], most: int, window: int) -> Guard:
    """Targets behind their prompts, and whole texts in windows; at most `most` tokens, but one row at least."""
    from uphold.core.errors import EmptyError
    from uphold.models.encode import Encoded
    from uphold.models.neurons.config import Guard

    rows: list[Encoded] = []
    for prompt, target in texts:
        if prompt:
            rows.extend(encoder.pairs([(prompt, target)]))
            continue
        [ids] = encoder.prompts([target])
        windows = [ids[start : start + window] for start in range(0, len(ids), window)]
        rows.extend(Encoded(one[:1], one[1:]) for one in windows if len(one) > 1)
    if not rows:
        raise EmptyError("no text of the guard set has two tokens: nothing can be predicted in it")
    ends = accumulate(len(row.prompt) + len(row.answer) for row in rows)
    kept = [row for number, (row, end) in enumerate(zip(rows, ends, strict=True)) if not number or end <= most]
    return Guard(tuple(kept))


def _table(report: NeuronReport, tokenizer: Any) -> list[str]:
    lines = []
    for one in report.failures:
        where = "".join(tokenizer.decode(list(one.failure.prompt)))[-_SHOWN:]
        lines.append(f"{one.failure.name}: {one.status}{f' ({one.reason})' if one.reason else ''}  …{where!r}")
        lines.append(
            f"    before {_said(one.before.predicted, tokenizer)}, after {_said(one.after.predicted, tokenizer)}"
        )
        lines.extend(_tokens(one, tokenizer))
        if one.paraphrases is not None:
            other = one.paraphrases
            lines.append(
                f"    paraphrases right: {other.right_before} -> {other.right_after} of {other.count}; mean rank "
                f"of the target {other.rank_before:.1f} -> {other.rank_after:.1f}, mean gap "
                f"{other.gap_before:.3f} -> {other.gap_after:.3f}"
            )
    return lines


def _said(ids: Sequence[int], tokenizer: Any) -> str:
    return repr(str(tokenizer.decode(list(ids)))[:_SHOWN])


def _tokens(one: FailureReport, tokenizer: Any) -> list[str]:
    return [
        f"    token {token.position + 1}: {_said([token.wrong], tokenizer)} -> {_said([token.target], tokenizer)}, "
        f"f {token.strength:g}, neurons {', '.join(f'{layer}/{index}' for layer, index in token.neurons)}"
        for token in one.tokens
        if token.repaired and one.status == "repaired"
    ]


def _side_effects(report: NeuronReport) -> list[str]:
    if report.drift is None:
        return ["side effects: not measured; --guard FILE measures them and undoes what does too much"]
    drift: Drift = report.drift
    return [
        f"side effects on {drift.tokens} tokens of the guard set: {drift.agreement:.2%} of predictions unchanged, loss "
        f"{drift.nll_before:.4f} -> {drift.nll_after:.4f} nats per token"
    ]
