"""Robust weight signatures (arXiv:2302.12480) on the embedded language model: prompts with another alphabet.

    python reproductions/06b_signatures_lm.py [--seeds 0 1 2]

All weights of `embedded:v1` are fine-tuned on the task `demo`: on its prompts as they are, and on prompts in which
half of the digits, drawn anew every epoch, are letters (0 1 2 to a b c). Layers and strength are chosen on 1,000
validation prompts, everything is measured on 2,000 test prompts. A seed decides order and damage in training.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from evidence import WORK, Claim, mean_and_spread, use_one_thread, write_evidence

import uphold
from uphold.core.runs import RunStore
from uphold.models.patches.apply import apply
from uphold.models.patches.make import make
from uphold.repair.signature_choice import choose, task_accuracy
from uphold.repair.signatures import layer_sizes, signature
from uphold.tasks.base import FixedTask, Instance

NAME, PAPER, TASK, MODEL = "06b_signatures_lm", "arXiv:2302.12480", "demo", "embedded:v1"
LETTERS, SHARE, DAMAGE_SEED = str.maketrans("012", "abc"), 0.5, 2024
EPOCHS, BATCH, LEARNING_RATE, IGNORED = 5, 64, 1e-3, -100
BUDGETS = (0.02, 0.1)


def damaged(prompt: str, draw: random.Random) -> str:
    """The prompt with half of its grid's digits as letters."""
    cells = "".join(cell.translate(LETTERS) if draw.random() < SHARE else cell for cell in prompt[1:-1])
    return prompt[0] + cells + prompt[-1]


def damaged_task(task: FixedTask) -> FixedTask:
    """The task with damaged prompts, always the same ones."""
    draw = random.Random(DAMAGE_SEED)
    splits = {
        split: [replace(one, prompt=damaged(one.prompt, draw)) for one in task.instances(split)]
        for split in ("validation", "test")
    }
    return replace(task, name=f"{task.name}-letters", splits=splits)


def tuned(start: Any, tokenizer: Any, instances: Sequence[Instance], seed: int, damage: bool) -> Any:
    """All weights of a copy of `start`, trained on the answers."""
    model, draw = copy.deepcopy(start).train(), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    steps = EPOCHS * -(-len(instances) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    for _ in range(EPOCHS):
        order = draw.sample(instances, len(instances))
        for first in range(0, len(order), BATCH):
            rows = []
            for one in order[first : first + BATCH]:
                prompt = damaged(one.prompt, draw) if damage else one.prompt
                rows.append((tokenizer.encode(prompt), tokenizer.encode(one.target, add_special_tokens=False)))
            length = max(len(prompt) + len(answer) for prompt, answer in rows)
            ids, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), IGNORED)
            for row, (prompt, answer) in enumerate(rows):
                ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def run_seed(seed: int) -> dict[str, Any]:
    """All of one seed; accuracies as (clean, damaged)."""
    task, loaded = uphold.load_task(TASK), uphold.load(MODEL)
    assert isinstance(task, FixedTask)
    store, hard = RunStore(WORK / NAME / "store"), damaged_task(task)
    standard, robust = (
        tuned(loaded.model, loaded.tokenizer, list(task.instances("train")), seed, damage) for damage in (False, True)
    )
    validation, test = (
        [task_accuracy(loaded.tokenizer, one, split=split, store=store) for one in (task, hard)]
        for split in ("validation", "test")
    )

    def measured(model: Any) -> list[float]:
        return [metric(model) for metric in test]

    found: dict[str, Any] = {
        "start": measured(loaded.model),
        "standard": measured(standard),
        "robust model": measured(robust),
        "sizes": layer_sizes(signature(loaded.model, standard, robust)),
    }
    for layers in (1, 2, 3):
        for strength in (0.5, 1.0):
            with apply(standard, signature(loaded.model, standard, robust, layers=layers), strength):
                found[f"{layers} layers x {strength:g}"] = measured(standard)
    names = [name for name, _ in standard.named_parameters() if not name.startswith("model.norm.")]
    for strength in (0.5, 1.0):
        with apply(standard, make(standard, robust, names=names), strength):
            found[f"difference, 3 layers x {strength:g}"] = measured(standard)
    for budget in BUDGETS:
        choice = choose(
            standard,
            loaded.model,
            standard,
            robust,
            clean=validation[0],
            robustness=validation[1],
            budget=budget,
            layers=(1, 2, 3),
        )
        found[f"budget {budget}"] = None
        if choice.patch is not None:
            with apply(standard, choice.patch):
                found[f"budget {budget}"] = [*measured(standard), str(choice.chosen)]
    return found


def judge(seeds: Sequence[dict[str, Any]]) -> list[Claim]:
    """The claims, each over all seeds."""

    def change(arm: str, which: int, against: str = "standard") -> list[float]:
        return [one[arm][which] - one[against][which] for one in seeds]

    def both(arm: str) -> str:
        return f"damaged {mean_and_spread(change(arm, 1))}, clean {mean_and_spread(change(arm, 0))}"

    shares = [change("2 layers x 1", 1)[index] / change("robust model", 1)[index] for index in range(len(seeds))]
    projected, plain = change("3 layers x 1", 0), change("difference, 3 layers x 1", 0)
    gained, plainly = change("3 layers x 1", 1), change("difference, 3 layers x 1", 1)
    sizes = [list(one["sizes"].values()) for one in seeds]
    claims = [
        Claim(
            "damage costs accuracy",
            f"{mean_and_spread([one['standard'][1] - one['standard'][0] for one in seeds])} points",
            all(one["standard"][1] < one["standard"][0] for one in seeds),
        ),
        Claim(
            "a signature of embedding and first block helps on damaged prompts",
            f"strength 1: {both('2 layers x 1')}; 0.5: {both('2 layers x 0.5')}",
            min(change("2 layers x 1", 1)) > 0,
        ),
        Claim(
            "it brings most of what robust training brings",
            f"{mean_and_spread(shares)} % of the robust model's gain",
            min(shares) > 0.5,
        ),
        Claim(
            "the second block adds nothing to it",
            f"{mean_and_spread(change('3 layers x 1', 1, '2 layers x 1'))} points on damaged prompts",
            max(change("3 layers x 1", 1, "2 layers x 1")) < 0.01,
        ),
        Claim(
            "signatures lie in shallow layers: |R|/|w| of the embedding beyond that of the last block",
            "; ".join(" ".join(f"{size:.3f}" for size in one) for one in sizes),
            all(one[0] > one[-1] for one in sizes),
        ),
        Claim(
            "the projection protects clean accuracy against the plain difference",
            f"signature {mean_and_spread(projected)}, difference {mean_and_spread(plain)}; on damaged prompts "
            f"{mean_and_spread(gained)} and {mean_and_spread(plainly)}",
            sum(projected) > sum(plain),
        ),
    ]
    for budget in BUDGETS:
        arm = f"budget {budget}"
        chosen = [one for one in seeds if one[arm] is not None]
        gains = [one[arm][1] - one["standard"][1] for one in chosen]
        costs = [one[arm][0] - one["standard"][0] for one in chosen]
        text = "nothing chosen" if not chosen else f"damaged {mean_and_spread(gains)}, clean {mean_and_spread(costs)}"
        claims.append(
            Claim(
                f"chosen under a budget of {100 * budget:.0f} points, it helps and keeps the budget on the test split",
                f"{len(chosen)} of {len(seeds)} seeds: {text}",
                len(chosen) == len(seeds) and min(gains) > 0 and sum(costs) / len(costs) >= -budget,
            )
        )
    return claims


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    use_one_thread()
    started = time.monotonic()
    seeds = []
    for seed in options.seeds:
        found = run_seed(seed)
        seeds.append(found)
        print(f"seed {seed} ({time.monotonic() - started:.0f} s), clean / damaged in %")
        for arm, values in found.items():
            if isinstance(values, list):
                print(f"  {arm:<28}{100 * values[0]:6.2f} {100 * values[1]:6.2f}  {' '.join(values[2:])}", flush=True)
    write_evidence(NAME, PAPER, options.seeds, judge(seeds), {"seeds": seeds}, time.monotonic() - started)


if __name__ == "__main__":
    main()
