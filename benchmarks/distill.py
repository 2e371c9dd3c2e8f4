"""Distillation beside TRL's GKDTrainer and a plain PyTorch loop: one model, one LoRA, the same tokens.

    python benchmarks/distill.py [--model embedded:smollm2] [--steps 6] [--only speed|loss]

Ours is MUSCLE with two teachers, which are asked at every step, or read once and then from disk; TRL's trainer has
one teacher (off-policy: lmbda 0, forward KL: beta 0), the plain loop has two and holds whole logits. All are float32,
with every sequence full, so that padding decides nothing. A run with a cache is charged its share of writing it, over
`--epochs` epochs. Each measurement is a process of its own, so that its peak memory is its own; the first step is a
warm-up and is not counted. Needs trl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

HERE = Path(__file__).parent
TEMPERATURE = 2.0
RANK, ALPHA = 16, 32.0
ASKED_SPEED, ASKED_MEMORY, ASKED_ERROR = 1.5, 4.0, 1e-5
WAYS = ("asked", "hidden states", "top 64", "trl", "plain")
MIB = 1 << 20


def rows_of(job: dict[str, Any], tokenizer: Any) -> list[Any]:
    """Pieces of this project's documentation, all of one length, the second half of each the answer."""
    from uphold.models.encode import Encoded

    count, length = (job["steps"] + 1) * job["batch"], job["length"]
    texts = [path.read_text() for path in sorted((HERE.parent / "docs").glob("*.md"))]
    tokens = tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"]
    pieces = [tokens[number * length : (number + 1) * length] for number in range(count)]
    if len(pieces[-1]) < length:
        raise SystemExit(f"the documentation has {len(tokens)} tokens, but {count * length} are needed: fewer --steps")
    return [Encoded(row[: length // 2], row[length // 2 :], number) for number, row in enumerate(pieces)]


def start(job: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Student, old and new teacher: one base, and for the old one the same base with other noise in its adapter."""
    import torch

    from uphold.models.adapter import fresh_adapter
    from uphold.models.load import load

    torch.set_num_threads(job["threads"])
    new = load(job["model"])
    old = fresh_adapter(new, RANK, ALPHA, 0.0, 1)
    with torch.no_grad():
        for name, value in old.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    for value in old.parameters():
        value.requires_grad_(False)
    return fresh_adapter(new, RANK, ALPHA, 0.0, 0), old.eval(), new


def timed_steps(job: dict[str, Any], step: Callable[[int], None]) -> dict[str, Any]:
    """Seconds per step without the first, and the tokens that are trained in each."""
    step(0)
    begun, cpu = time.perf_counter(), time.process_time()
    for number in range(1, job["steps"] + 1):
        step(number)
    return summary(job, time.perf_counter() - begun, time.process_time() - cpu)


def summary(job: dict[str, Any], wall: float, cpu: float) -> dict[str, Any]:
    """What is kept of the steps that count."""
    steps = job["steps"]
    return {"step_s": wall / steps, "step_cpu_s": cpu / steps, "tokens": job["batch"] * job["length"]}


def optimiser_of(student: Any) -> Any:
    """AdamW over what is trained."""
    import torch

    return torch.optim.AdamW([value for value in student.parameters() if value.requires_grad], lr=1e-4)


def ours(job: dict[str, Any], top: int | None) -> dict[str, Any]:
    """Steps of MUSCLE; `top` is what is kept of the teachers, None for nothing."""
    from uphold.models.encode import collate
    from uphold.models.objective import Distillation, FrozenTeacher
    from uphold.models.teacher_cache import CachedTeacher, CacheSpec, write_cache
    from uphold.repair.muscle import MuscleRule

    student, old, new = start(job)
    rows = rows_of(job, new.tokenizer)
    teachers: list[Any] = [FrozenTeacher(old), FrozenTeacher(new.model)]
    spent, tail, size = 0.0, {}, 0
    with tempfile.TemporaryDirectory() as folder:
        if top is not None:
            spec = CacheSpec(top, (1.0, TEMPERATURE), "all", job["batch"])
            for number, teacher in enumerate(teachers):
                place = Path(folder) / str(number)
                begun = time.perf_counter()
                write_cache(teacher, rows[job["batch"] :], spec, place)
                spent += time.perf_counter() - begun
                teachers[number] = CachedTeacher(teacher, place)
                size += sum(file.stat().st_size for file in place.iterdir())
                if top:
                    found = teachers[number].tail[TEMPERATURE]
                    tail[("old", "new")[number]] = {
                        "mass_outside_mean": round(found.mean, 4),
                        "gradient_bound": round(found.gradient_bound(TEMPERATURE), 4),
                    }
        objective = Distillation(MuscleRule(temperature=TEMPERATURE), teachers, "all")
        optimiser = optimiser_of(student.train())

        def step(number: int) -> None:
            own = rows[number * job["batch"] : (number + 1) * job["batch"]]
            optimiser.zero_grad()
            batch = collate(own)
            (objective(student, batch).total / objective.count(batch)).backward()
            optimiser.step()

        found = timed_steps(job, step)
    return found | {
        "write_s": spent / job["steps"],
        "bytes_per_token": round(size / (job["steps"] * job["batch"] * (job["length"] - 1)) / 2),
        "tail": tail,
    }


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """The loop that one writes first: whole logits of three models, MUSCLE's mask, autograd."""
    import torch

    from uphold.models.encode import collate

    student, old, new = start(job)
    rows = rows_of(job, new.tokenizer)
    optimiser = optimiser_of(student.train())

    def step(number: int) -> None:
        ids = collate(rows[number * job["batch"] : (number + 1) * job["batch"]]).input_ids
        optimiser.zero_grad()
        with torch.no_grad():
            theirs = [one(input_ids=ids).logits[:, :-1] for one in (old, new.model)]
        mine = student(input_ids=ids).logits[:, :-1]
        naive_loss(mine, theirs, ids[:, 1:]).div(ids[:, 1:].numel()).backward()
        optimiser.step()

    return timed_steps(job, step)


def naive_loss(student: Any, teachers: Any, targets: Any) -> Any:
    """Eq. 1 of MUSCLE over whole logits."""
    from torch.nn.functional import kl_div

    own = (student / TEMPERATURE).log_softmax(dim=-1)
    wrong = student.argmax(dim=-1) != targets
    old, new = (
        kl_div(own, (one / TEMPERATURE).log_softmax(dim=-1), reduction="none", log_target=True).sum(dim=-1)
        for one in teachers
    )
    return (wrong * old + ~wrong * new).sum()


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """Steps of GKDTrainer with the same student, its one teacher, and the same tokens."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, _, new = start(job)
    rows = rows_of(job, new.tokenizer)

    def collated(examples: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([example["ids"] for example in examples])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "prompts": ids[:, :1]}

    begun: list[tuple[float, float]] = []
    ended: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begun.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=0.0,
            temperature=TEMPERATURE,
            per_device_train_batch_size=job["batch"],
            max_steps=job["steps"] + 1,
            learning_rate=1e-4,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = Dataset.from_list([{"ids": row.prompt + row.answer} for row in rows])
        tokenizer = new.tokenizer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        trainer = GKDTrainer(
            model=student,
            teacher_model=new.model,
            args=arguments,
            train_dataset=data,
            data_collator=collated,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    assert len(ended) == job["steps"] + 1
    pairs = list(zip(begun, ended, strict=True))
    wall, cpu = (sum(after[clock] - before[clock] for before, after in pairs[1:]) for clock in (0, 1))
    return summary(job, wall, cpu)


def loss_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of a loss and its gradient beside hidden states and heads, and how exact they are."""
    import torch

    from uphold.models.distillation import distillation_loss
    from uphold.models.projection import Projected
    from uphold.models.rules import Trained
    from uphold.repair.muscle import MuscleRule

    torch.set_num_threads(job["threads"])
    count, width, vocabulary = job["batch"] * job["length"], 576, job["vocabulary"]
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(count, width, generator=generator) for _ in range(3)]
    head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    head.weight.normal_(std=0.1, generator=generator)
    numbers = torch.arange(count)
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    with torch.no_grad():
        for part in numbers[::2].split(64):
            targets[part] = head(hidden[0][part]).argmax(dim=-1)
    trained = Trained(numbers // job["length"], numbers % job["length"], targets, numbers % 2 == 0, numbers)
    source = hidden[0].clone().requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if job["way"] == "naive":
        teachers = [head(one) for one in hidden[1:]]
        total = naive_loss(head(source), teachers, targets)
    else:
        projected = [Projected(one, head) for one in hidden[1:]]
        total, _ = distillation_loss(Projected(source, head), projected, trained, MuscleRule(temperature=TEMPERATURE))
    (total / count).backward()
    found = {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}
    if job["way"] == "ours" and job["exact"]:
        found |= errors(source, head, hidden, targets, float(total.detach()) / count)
    return found


def errors(source: Any, head: Any, hidden: Any, targets: Any, mean: float) -> dict[str, Any]:
    """How far loss and gradient are from those of a float64 computation, made 64 tokens at a time."""
    import torch

    weight, total, largest, scale = head.weight.double(), 0.0, 0.0, 0.0
    for part in torch.arange(len(source)).split(64):
        exact = source[part].detach().double().requires_grad_()
        teachers = [one[part].double() @ weight.T for one in hidden[1:]]
        loss = naive_loss(exact @ weight.T, teachers, targets[part]) / len(source)
        loss.backward()
        total += float(loss.detach())
        largest = max(largest, float((exact.grad - source.grad[part]).abs().max()))
        scale = max(scale, float(exact.grad.abs().max()))
    return {"loss_error": abs(total - mean), "gradient_error": largest, "loss": total, "largest_gradient": scale}


def limit(job: dict[str, Any]) -> dict[str, Any]:
    """How fast this machine multiplies matrices of the kind that a layer has."""
    import torch

    torch.set_num_threads(job["threads"])
    one, other = torch.randn(job["batch"] * job["length"], 576), torch.randn(1536, 576)
    operations = 2 * one.shape[0] * 576 * 1536
    best = 0.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(10):
            one @ other.T
        best = max(best, 10 * operations / (time.perf_counter() - begun))
    return {"flops": best}


def child(job: dict[str, Any]) -> dict[str, Any]:
    """One measurement."""
    kinds: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "asked": lambda job: ours(job, None),
        "hidden states": lambda job: ours(job, 0),
        "top 64": lambda job: ours(job, 64),
        "trl": trl,
        "plain": plain,
        "loss": loss_memory,
        "limit": limit,
    }
    found = kinds[job["kind"]](job)
    return found | {"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """`child` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
        command = [sys.executable, __file__, "--child", json.dumps(job), "--out", str(out)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def speed_rows(job: dict[str, Any], epochs: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tokens per second of each way; ways take turns, so that a machine that slows down slows all of them."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            runs[way].append(measured({**job, "kind": way}))
            print(f"{way}: {runs[way][-1]}", flush=True)

    def throughput(way: str) -> float:
        # The fastest round: what else runs on a machine only ever slows a measurement down.
        return max(one["tokens"] / (one["step_s"] + one.get("write_s", 0.0) / epochs) for one in runs[way])

    rows = []
    for way, label in (
        ("hidden states", f"MUSCLE, two teachers, hidden states kept, {epochs} epochs"),
        ("top 64", f"MUSCLE, two teachers, 64 likeliest tokens kept, {epochs} epochs"),
        ("asked", "MUSCLE, two teachers, asked at every step"),
    ):
        for peer, name in (("trl", "TRL GKDTrainer, one teacher"), ("plain", "plain PyTorch loop, two teachers")):
            pair = {"ours": way, "peer": peer}
            rows.append(
                {
                    "what": label,
                    "ours": round(throughput(way), 2),
                    "peer_name": name,
                    "peer": round(throughput(peer), 2),
                    "unit": "tokens/s",
                    "ratio": round(throughput(way) / throughput(peer), 3),
                    "asked": ASKED_SPEED if peer == "trl" and way != "asked" else None,
                    "cpu_s_per_step": {name: round(runs[one][0]["step_cpu_s"], 2) for name, one in pair.items()},
                    "peak_mib": {name: runs[one][0]["peak_mib"] for name, one in pair.items()},
                }
            )
    facts = {
        way: {key: runs[way][0][key] for key in ("bytes_per_token", "tail")} for way in ("hidden states", "top 64")
    }
    return rows, {"kept": facts, "trained_tokens_per_s": throughput("hidden states")}


def loss_rows(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Peak memory of the loss, and its distance from float64."""
    naive = measured({**job, "kind": "loss", "way": "naive"})
    own = measured({**job, "kind": "loss", "way": "ours", "exact": False})
    exact = measured({**job, "kind": "loss", "way": "ours", "exact": True})
    what = f"{job['batch']} x {job['length']} tokens, vocabulary {job['vocabulary']}"
    rows = [
        {
            "what": f"peak memory of the loss and its gradient, {what}",
            "ours": round(own["peak_bytes"] / MIB, 1),
            "peer_name": "whole logits, two teachers",
            "peer": round(naive["peak_bytes"] / MIB, 1),
            "unit": "MiB",
            "ratio": round(naive["peak_bytes"] / own["peak_bytes"], 2),
            "asked": ASKED_MEMORY,
        }
    ]
    for name in ("loss_error", "gradient_error"):
        rows.append(
            {
                "what": f"{name.replace('_', ' ')}, {what}",
                "ours": exact[name],
                "peer_name": "what is asked for",
                "peer": ASKED_ERROR,
                "unit": "largest absolute difference from float64",
                "ratio": round(ASKED_ERROR / max(exact[name], 1e-12), 2),
                "asked": 1.0,
                "of": exact["loss" if name == "loss_error" else "largest_gradient"],
            }
        )
    return rows


def share_of_limit(job: dict[str, Any], tokens_per_s: float) -> dict[str, Any]:
    """How much of the machine's speed at multiplying matrices a training with kept hidden states uses."""
    from uphold.models.load import load

    model = load(job["model"]).model
    head = model.get_output_embeddings().weight.numel()
    body = sum(value.numel() for name, value in model.named_parameters() if "proj" in name)
    # Per token: a layer forward and back to its input; the head forward and back, and forward once for a teacher.
    per_token = 2 * (2 * body + 3 * head)
    found = measured({**job, "kind": "limit"})
    return {
        "what": "multiplications that a step cannot do without, over what the machine can do",
        "machine_gflops": round(found["flops"] / 1e9, 1),
        "achieved_gflops": round(per_token * tokens_per_s / 1e9, 1),
        "share": round(per_token * tokens_per_s / found["flops"], 3),
    }


def main() -> None:
    """Measure, print, and write `results/distill.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="steps that count, in each of the rounds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10, help="over which writing a cache is spread")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=("speed", "loss"))
    parser.add_argument("--name", default="distill", help="name of the result file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        options.out.write_text(json.dumps(child(json.loads(options.child))))
        return
    names = ("model", "length", "batch", "steps", "threads")
    job = {name: getattr(options, name) for name in names}
    result: dict[str, Any] = {"name": "distill", **job, "epochs": options.epochs, "lora_rank": RANK, "rows": []}
    if options.only in (None, "loss"):
        result["rows"] += loss_rows({**job, "vocabulary": 49152})
    if options.only in (None, "speed"):
        rows, facts = speed_rows(job, options.epochs, options.rounds)
        result["rows"] = rows + result["rows"]
        result["kept"] = facts["kept"]
        result["limit"] = share_of_limit(job, facts["trained_tokens_per_s"])
    result["machine"] = f"{platform.processor() or platform.machine()}, {options.threads} threads"
    packages = ("uphold", "torch", "transformers", "peft", "trl", "accelerate")
    result["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    for row in result["rows"]:
        print(f"{row['what']}: {row['ours']} against {row['peer']} {row['unit']} ({row['peer_name']}): {row['ratio']}")
    path = HERE / "results" / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
