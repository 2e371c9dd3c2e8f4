"""Deep Model Assembling (arXiv:2212.04129): separately trained stages that fit, and one stage of a model replaced.

    python reproductions/20_assembling.py [--seeds 0 1 2]

A residual MLP of 32 blocks in 4 stages on 300 of scikit-learn's digits: trained end to end, and by way of a meta
model of 4 blocks; the control takes its stages from four different meta models. Then each layer of the embedded
language model v2 is made anew among its frozen neighbours. Times are CPU times of one thread.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import digits
import torch
from evidence import RESULTS, WORK, Claim, mean_and_spread, use_one_thread, value, write_evidence
from torch import nn

import uphold
from uphold.core.runs import RunStore
from uphold.models.encode import Encoder, collate
from uphold.models.stages.build import Blueprint
from uphold.models.stages.data import IGNORED, Classification, Examples, NextToken, correct
from uphold.models.stages.stages import Stages
from uphold.models.stages.training import FineTuning, Training, seeded
from uphold.repair import assembly, assembly_jobs, assembly_replace, assembly_report

NAME, PAPER = "20_assembling", "arXiv:2212.04129"
DEPTHS, WIDTH, TRAIN, EPOCHS = (8, 8, 8, 8), 64, 300, 60
LAYERS, LAYER_EPOCHS = (0, 1), 10
"""The layers of the embedded model that are made anew, one at a time, and for how long each is trained."""
FRESH, GIVEN, UNTRAINED = "trained from fresh weights", "trained on from its own weights", "fresh and untrained"


class Block(nn.Module):
    """x + W2 ReLU(W1 LN(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output, of the shape of `x`."""
        return x + self.down(torch.relu(self.up(self.norm(x))))


def build(depths: tuple[int, ...]) -> nn.Module:
    """The first stage begins with a linear layer, the last one ends with norm and head."""
    blocks = [Block() for _ in range(sum(depths))]
    return nn.Sequential(nn.Linear(64, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, digits.CLASSES))


def shift(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by at most one pixel each way."""
    padded = nn.functional.pad(inputs.view(-1, 8, 8), (1, 1, 1, 1))
    down, right = (torch.randint(0, 3, (len(inputs), 1), generator=generator) for _ in range(2))
    rows, columns = torch.arange(8) + down, torch.arange(8) + right
    return padded[torch.arange(len(inputs))[:, None, None], rows[:, :, None], columns[:, None, :]].flatten(1)


@dataclass(frozen=True)
class Outcome:
    """One seed on the digits; shares of 500 test images, seconds of CPU time."""

    end_to_end: float
    meta: float
    hybrids: tuple[float, ...]
    assembled: float
    control: float
    tuned: float
    cka: tuple[float | None, ...]
    end_to_end_s: float
    assembling_s: float
    frozen_unchanged: bool


def run_digits(seed: int, folder: Path) -> Outcome:
    """All arms of one seed, from the start: what was left of an earlier run would cost no time."""
    shutil.rmtree(folder, ignore_errors=True)
    data = digits.load()
    chosen = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(seed))[:TRAIN]
    train = Examples(data.train_x[chosen].flatten(1), data.train_y[chosen], shift)
    test = Examples(data.test_x.flatten(1), data.test_y)
    plan = Blueprint(build, DEPTHS)
    long, short = Training(epochs=EPOCHS, seed=seed), Training(epochs=EPOCHS // 3, seed=seed)

    def share(stages: Stages) -> float:
        return int(correct(stages.model, test, Classification()).sum()) / len(test)

    def meta_of(number: int) -> Stages:
        config = Training(epochs=EPOCHS, seed=seed + 100 * number)
        return assembly.train_meta(plan.meta, train, out=folder / f"meta-{number}", config=config)

    started = time.process_time()
    whole = assembly_jobs.train_whole(
        seeded(plan.whole, seed), train, kind="end-to-end", out=folder / "end-to-end", config=long
    )
    end_to_end_s = time.process_time() - started

    started = time.process_time()
    meta = meta_of(0)
    before, kept, jobs = meta.hashes, True, []
    for stage in range(meta.count):
        jobs.append(assembly_jobs.incubate(meta, stage, plan.stage, train, out=folder / f"stage-{stage}", config=short))
        kept = kept and meta.hashes == before
    made = assembly.assemble(jobs, seeded(plan.whole, 0), meta)
    tuning = FineTuning(epochs=EPOCHS // 3, seed=seed)
    tuned = assembly.fine_tune(made, train, out=folder / "fine-tune", config=tuning)
    assembling_s = time.process_time() - started

    # `assemble` refuses stages of several meta models, which is the point: they are loaded one by one.
    control = made.copied()
    for stage in range(1, meta.count):
        job = assembly_jobs.incubate(
            meta_of(stage), stage, plan.stage, train, out=folder / f"control-{stage}", config=short
        )
        control.load(stage, job.tensors())
    report = assembly_report.compatibility(meta, made, test)
    return Outcome(
        share(whole),
        report.meta,
        report.hybrids,
        report.assembled,
        share(control),
        share(tuned),
        report.cka,
        end_to_end_s,
        assembling_s,
        kept,
    )


# ---- one layer of the embedded language model ----


def tokens(loaded: Any, task: Any, split: str) -> Examples:
    """Prompt, answer and end of each instance; the answer's tokens and the end count."""
    pairs = [(instance.prompt + task.delimiter, instance.target) for instance in task.instances(split)]
    end = loaded.tokenizer.eos_token_id
    rows = [one._replace(answer=[*one.answer, end]) for one in Encoder(loaded.tokenizer).pairs(pairs)]
    batch = collate(rows)
    return Examples(batch.input_ids, torch.where(batch.is_answer, batch.input_ids, IGNORED))


def run_decoder(seed: int, folder: Path) -> list[dict[str, dict[str, Any]]]:
    """Each layer of the embedded v2 made anew on the demo task's train split; both versions on its test split."""
    task, loaded = uphold.load_task("demo"), uphold.load("embedded:v2")
    train, test = (tokens(loaded, task, split) for split in ("train", "test"))
    config = Training(epochs=LAYER_EPOCHS, batch_size=64, learning_rate=3e-3, seed=seed)
    still = Training(epochs=1, batch_size=64, learning_rate=0.0, final_rate=0.0, seed=seed)
    found: list[dict[str, dict[str, Any]]] = []
    for layer in LAYERS:
        names = ["model.layers.0", "model.layers.1", "model.norm"]
        deployed = Stages.at(loaded.model, names)
        found.append({})
        for arm, training in ((FRESH, config), (GIVEN, config), (UNTRAINED, still)):
            made = assembly_replace.replace_stage(
                deployed,
                names.index(f"model.layers.{layer}") + 1,
                partial(given, deployed) if arm == GIVEN else None,
                train,
                test=test,
                out=folder / f"layer-{layer}" / arm.replace(" ", "-"),
                objective=NextToken(),
                config=training,
                tokenizer=loaded.tokenizer,
                patch=arm == FRESH,
            )
            compared = uphold.compare("embedded:v2", made.model, task, store=RunStore(folder / "store"))
            pairs = zip(made.stages.hashes, deployed.hashes, strict=True)
            found[-1][arm] = {
                **{rate: round(value(compared, rate), 5) for rate in ("accuracy_old", "accuracy_new", "nfr", "pfr")},
                "moved": [names[number - 1] for number, (new, old) in enumerate(pairs) if new != old],
                "seconds": made.job.result["seconds"],
            }
    return found


def given(deployed: Stages, stage: int) -> Stages:
    """A builder that starts where the deployed model is."""
    return deployed


# ---- evidence ----


def judge(seeds: list[Outcome], decoders: list[list[dict[str, dict[str, Any]]]]) -> list[Claim]:
    """The claims."""

    def spread(name: str) -> str:
        return mean_and_spread([getattr(one, name) for one in seeds])

    gains = [one.tuned - one.assembled for one in seeds]
    lost = [one.tuned - one.end_to_end for one in seeds]
    times = [one.assembling_s / one.end_to_end_s for one in seeds]
    cost = assembly_report.cost(DEPTHS)
    return [
        Claim(
            "(a) stages of one meta model fit before any fine-tune: far above chance (10%) and above the control",
            f"{spread('assembled')}, stages of four meta models {spread('control')}",
            all(one.assembled > 0.3 and one.assembled > one.control + 0.3 for one in seeds),
        ),
        Claim(
            "(b) the fine-tune adds at least 15 points for every seed",
            f"{mean_and_spread(gains)} points, to {spread('tuned')}",
            min(gains) >= 0.15,
        ),
        Claim(
            "(b) and ends within 10 points of end-to-end training",
            f"end to end {spread('end_to_end')}, difference {mean_and_spread(lost)} points",
            min(lost) >= -0.10,
        ),
        Claim(
            "(c) an incubation leaves every other stage's hash unchanged",
            f"{4 * len(seeds)} incubations",
            all(one.frozen_unchanged for one in seeds),
        ),
        Claim(
            "the paper's gain in accuracy over end-to-end training",
            f"{mean_and_spread(lost)} points",
            sum(lost) > 0,
        ),
        Claim(
            "the paper's gain in compute over end-to-end training, all phases",
            f"{min(times):.2f} to {max(times):.2f} times its CPU time; an epoch of all incubations costs "
            f"{cost.units_ratio:.2f} times one of the whole",
            max(times) < 1,
        ),
        *(
            claim
            for number, layer in enumerate(LAYERS)
            for claim in judge_layer(layer, [one[number] for one in decoders])
        ),
    ]


def judge_layer(layer: int, seeds: list[dict[str, dict[str, Any]]]) -> list[Claim]:
    """What is claimed of one layer of the language model."""

    def values(arm: str, rate: str = "accuracy_new") -> list[float]:
        return [arms[arm][rate] for arms in seeds]

    old = values(FRESH, "accuracy_old")
    change = [new - before for new, before in zip(values(FRESH), old, strict=True)]
    return [
        Claim(
            f"layer {layer} of the embedded language model made anew: all other stages keep their hash",
            f"moved: {', '.join(sorted({name for arms in seeds for name in arms[FRESH]['moved']}))}",
            all(arms[FRESH]["moved"] == [f"model.layers.{layer}"] for arms in seeds),
        ),
        Claim(
            "and the model is as accurate as before, to within a point",
            f"{100 * old[0]:.2f} before, {mean_and_spread(values(FRESH))} after ({mean_and_spread(change)} points), "
            f"NFR {mean_and_spread(values(FRESH, 'nfr'))}; without training {mean_and_spread(values(UNTRAINED))}; "
            f"trained on from its own weights {mean_and_spread(values(GIVEN))}",
            sum(change) / len(change) >= -0.01,
        ),
    ]


def draw(seeds: list[Outcome], path: Path) -> None:
    """Accuracy at each phase, a line per seed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = ["meta model", "hybrids\n(mean)", "assembled", "fine-tuned"]
    for one in seeds:
        shares = [one.meta, sum(one.hybrids) / len(one.hybrids), one.assembled, one.tuned]
        axes.plot(names, [100 * share for share in shares], "o-", color="C0", alpha=0.7)
    for label, color, marker in (("end_to_end", "C2", "s"), ("control", "C3", "X")):
        where = names[3] if label == "end_to_end" else names[2]
        shares = [100 * getattr(one, label) for one in seeds]
        legend = "trained end to end" if label == "end_to_end" else "control: stages of four meta models"
        axes.scatter([where] * len(seeds), shares, color=color, marker=marker, label=legend, zorder=3)
    axes.axhline(10, color="grey", linewidth=0.8, linestyle=":", label="chance")
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    started = time.monotonic()
    folders = [WORK / NAME / f"seed-{seed}" for seed in options.seeds]
    workers = min(len(folders), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=use_one_thread) as pool:
        seeds = list(pool.map(run_digits, options.seeds, folders))
        decoders = list(pool.map(run_decoder, options.seeds, [folder / "decoder" for folder in folders]))
    for seed, one in zip(options.seeds, seeds, strict=True):
        hybrids = " ".join(f"{100 * share:.1f}" for share in one.hybrids)
        cka = " ".join("-" if share is None else f"{share:.2f}" for share in one.cka)
        print(
            f"seed {seed}: end to end {one.end_to_end:.1%}, meta {one.meta:.1%}, hybrids {hybrids}, assembled "
            f"{one.assembled:.1%} (control {one.control:.1%}), fine-tuned {one.tuned:.1%}; CKA {cka}; CPU "
            f"{one.assembling_s:.0f} s / {one.end_to_end_s:.0f} s"
        )
    for seed, layers in zip(options.seeds, decoders, strict=True):
        for layer, arms in zip(LAYERS, layers, strict=True):
            for arm, found in arms.items():
                print(f"seed {seed}, layer {layer}, {arm}: {found}")
    draw(seeds, RESULTS / f"{NAME}.svg")
    figures = {
        "digits": [asdict(one) for one in seeds],
        "decoder": decoders,
        "cost": asdict(assembly_report.cost(DEPTHS)),
    }
    write_evidence(NAME, PAPER, options.seeds, judge(seeds, decoders), figures, time.monotonic() - started)


if __name__ == "__main__":
    main()
