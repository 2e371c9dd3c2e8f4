"""The evaluation engine beside lm-evaluation-harness and `model.generate`, on one model and the same requests.

    python benchmarks/engine.py [--model embedded:smollm2] [--scale 1.0] [--only choice|generate|cost]

Each measurement is a process of its own, so that its peak memory is its own; a short warm-up is not counted. The peer
gets the batch size at which it is fastest on the first instances. Needs lm-eval, and BIG-bench's archive, which is
downloaded once (`uphold tasks` says more).
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
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).parent
PEER_BATCHES = (4, 16)
CALIBRATE = 3
"""Instances on which the peer's batch size is chosen."""
NEW_TOKENS = 128
# Name, task, instances, and how many times the peer's throughput is asked for.
CHOICE = (
    ("social_iqa, 5 shots", "bigbench:social_iqa:shots=5", 10, 2.5),
    ("strategyqa, 5 shots", "bigbench:strategyqa:shots=5", 48, 2.5),
    ("elementary_math_qa, 3 shots", "bigbench:elementary_math_qa/question_only:shots=3", 6, 2.5),
    ("social_iqa, no shots", "bigbench:social_iqa", 32, 1.3),
    ("strategyqa, no shots", "bigbench:strategyqa", 128, 1.3),
)
WRITING = ("basic_arithmetic", "gcd", "letter_counting", "word_sorting", "chain_sum", "caesar_cipher")
COST = ("bigbench:social_iqa:shots=5", (16, 64, 256))


def questions_of(task: str, count: int) -> list[list[tuple[str, str]]]:
    """The (context, continuation) pairs of the first `count` test instances."""
    from uphold.measure.answer import questions
    from uphold.tasks.load import load_task

    loaded = load_task(task)
    return questions(loaded, loaded.instances("test")[:count])


def chat_prompts(model: Any, count: int) -> list[str]:
    """Questions of several kinds and lengths, in the model's chat form, whose answers end when the model ends them."""
    from uphold.tasks.generated import GeneratedConfig, draw_instances

    drawn = [draw_instances(name, GeneratedConfig(), -(-count // len(WRITING)), 0) for name in WRITING]
    texts = [instance.prompt for row in zip(*drawn, strict=True) for instance in row][:count]
    turns = [[{"role": "user", "content": text}] for text in texts]
    return [model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]


def ours(loaded: Any, job: dict[str, Any]) -> Callable[[], Any]:
    """One call that does the job with our engine."""
    from uphold.models.decoding import Sampling
    from uphold.models.engine import LocalEngine, Meter

    meter = Meter()
    engine = LocalEngine(loaded, meter=meter)
    if job["kind"] == "generate":
        prompts = chat_prompts(loaded, job["count"])
        engine.write(prompts[:1], Sampling(2), prompts[:1])
        meter.tokens = 0
        return lambda: {
            "texts": [one.text for one in engine.write(prompts, Sampling(NEW_TOKENS), prompts)],
            "tokens": meter.tokens,
        }
    questions = questions_of(job["task"], job["count"])
    engine.score(questions[-1:])
    meter.tokens = 0
    return lambda: {
        "logprobs": [[option.logprob for option in one.options] for one in engine.score(questions)],
        "tokens": meter.tokens,
    }


def harness(loaded: Any, job: dict[str, Any]) -> Callable[[], Any]:
    """One call that does the job with lm-evaluation-harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="causal",
        batch_size=job["batch"],
        softmax_dtype=job.get("softmax"),
    )
    questions = questions_of(job["task"], job["count"])

    def requests(some: Sequence[Sequence[tuple[str, str]]]) -> list[Any]:
        return [Instance("loglikelihood", {}, pair, index) for question in some for index, pair in enumerate(question)]

    peer.loglikelihood(requests(questions[-1:]), disable_tqdm=True)

    def run() -> Any:
        scores = iter(peer.loglikelihood(requests(questions), disable_tqdm=True))
        return {"logprobs": [[next(scores)[0] for _ in question] for question in questions]}

    return run


def fixed_batches(loaded: Any, job: dict[str, Any]) -> Callable[[], Any]:
    """One call that does the job with `model.generate` on batches of prompts of like length."""
    import torch

    prompts = chat_prompts(loaded, job["count"])
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))

    def write(some: Sequence[int], tokens: int) -> list[str]:
        batch = tokenizer([prompts[index] for index in some], return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = loaded.model.generate(
                **batch.to(loaded.model.device),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    write(order[:1], 2)

    def run() -> Any:
        texts: dict[int, str] = {}
        for start in range(0, len(order), job["batch"]):
            some = order[start : start + job["batch"]]
            texts |= dict(zip(some, write(some, NEW_TOKENS), strict=True))
        return {"texts": [texts[index] for index in range(len(prompts))]}

    return run


ENGINES = {"ours": ours, "lm-eval": harness, "model.generate": fixed_batches}


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one job in this process."""
    import torch

    from uphold.models.load import load

    torch.set_num_threads(job["threads"])
    loaded = load(job["model"])
    run = ENGINES[job["engine"]](loaded, job)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    result = run()
    seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak
    return {"seconds": seconds, "cpu": spent, "peak_mib": memory, "loaded_mib": base / 1024, **result}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one job in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        subprocess.run([sys.executable, __file__, "--child", json.dumps(job), "--out", str(out)], check=True)
        return dict(json.loads(out.read_text()))


def best_batch(job: dict[str, Any], sizes: Sequence[int]) -> int:
    """The batch size at which the peer is fastest on a few instances."""
    few = {**job, "count": min(job["count"], CALIBRATE if job["kind"] == "choice" else job["count"] // 2)}
    times = {size: measure({**few, "batch": size})["seconds"] for size in sizes}
    return min(times, key=lambda size: times[size])


def agreement(ours: Sequence[Sequence[float]], peers: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How far log-likelihoods are apart, and how many questions have another likeliest option."""
    pairs = list(zip(ours, peers, strict=True))
    gaps = [abs(one - other) for own, his in pairs for one, other in zip(own, his, strict=True)]
    return {
        "requests": len(gaps),
        "largest_difference": max(gaps),
        "chosen_differently": sum(own.index(max(own)) != his.index(max(his)) for own, his in pairs),
    }


def compare(name: str, job: dict[str, Any], peer: str, sizes: Sequence[int], asked: float) -> dict[str, Any]:
    """One row: ours and the peer on the same instances, in turn; where there are two times, the faster one counts.

    The harness answers once more with its softmax in float64, for the agreement of the numbers alone.
    """
    batch = best_batch({**job, "engine": peer}, sizes)
    mine = measure({**job, "engine": "ours"})
    theirs = measure({**job, "engine": peer, "batch": batch})
    mine = min(mine, measure({**job, "engine": "ours"}), key=lambda one: one["seconds"])
    if job["kind"] == "generate":
        theirs = min(theirs, measure({**job, "engine": peer, "batch": batch}), key=lambda one: one["seconds"])
    count = job["count"]
    row = {
        "what": name,
        "ours": round(count / mine["seconds"], 3),
        "peer_name": f"{peer}, batch size {batch}",
        "peer": round(count / theirs["seconds"], 3),
        "unit": "instances/s",
        "ratio": round(theirs["seconds"] / mine["seconds"], 2),
        "asked": asked,
        "instances": count,
        "peak_mib": {"ours": round(mine["peak_mib"]), "peer": round(theirs["peak_mib"])},
        "cpu_s": {"ours": round(mine["cpu"], 1), "peer": round(theirs["cpu"], 1)},
        "tokens": mine["tokens"],
    }
    if "logprobs" in mine:
        # In float32 the harness's softmax over a large vocabulary is off by more than the model's own rounding.
        exact = measure({**job, "engine": peer, "batch": batch, "softmax": "float64"})
        row |= agreement(mine["logprobs"], exact["logprobs"])
        row["largest_difference_float32_softmax"] = agreement(mine["logprobs"], theirs["logprobs"])[
            "largest_difference"
        ]
    else:
        row["texts_equal"] = sum(one == other for one, other in zip(mine["texts"], theirs["texts"], strict=True))
    print(json.dumps(row), flush=True)
    return row


def matmul_peak(threads: int, device: str, dtype: str) -> float:
    """FLOP/s of a large matrix product: the best of several."""
    import torch

    torch.set_num_threads(threads)
    size = 2048 if device == "cpu" else 8192
    kind = getattr(torch, dtype)
    one, other = torch.randn(size, size, device=device, dtype=kind), torch.randn(size, size, device=device, dtype=kind)
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        product = one @ other
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    assert product.isfinite().all()
    return best


def limit(job: dict[str, Any], threads: int) -> dict[str, Any]:
    """How far from the machine's matrix product the engine is on a long workload."""
    from uphold.models.load import default_device, default_dtype, load

    device = default_device()
    model = load(job["model"]).model
    body = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    del model
    peak = matmul_peak(threads, device, str(default_dtype(device)).removeprefix("torch."))
    mine = measure({**job, "engine": "ours"})
    achieved = 2 * body * mine["tokens"] / mine["seconds"]
    return {
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "achieved_gflops": round(achieved / 1e9, 1),
        "share": round(achieved / peak, 3),
        "counted": "2 FLOP per weight of the layers and token read, projections to the vocabulary left out",
    }


def cost(model: str, threads: int, scale: float) -> list[dict[str, Any]]:
    """Seconds and memory per instance at 1, 4 and 16 times the instances."""
    task, counts = COST
    points = []
    for count in counts:
        job = {"kind": "choice", "task": task, "count": int(count * scale), "model": model, "threads": threads}
        mine = measure({**job, "engine": "ours"})
        points.append(
            {
                "instances": job["count"],
                "seconds_per_instance": round(mine["seconds"] / job["count"], 4),
                "tokens_per_instance": round(mine["tokens"] / job["count"], 1),
                "peak_mib": round(mine["peak_mib"]),
            }
        )
        print(json.dumps(points[-1]), flush=True)
    return points


def facts(model: str, threads: int) -> dict[str, Any]:
    """A result without rows: what was measured where, with which versions."""
    from uphold.models.load import default_device, library_versions, numerics

    machine: dict[str, Any] = {"cores": os.cpu_count(), "threads": threads, "system": platform.system()}
    if default_device() != "cpu":
        import torch

        machine["device"] = torch.cuda.get_device_name()
    return {
        "name": "engine",
        "model": model,
        "rows": [],
        "machine": machine | {"python": platform.python_version(), **numerics()},
        "versions": library_versions() | {"lm_eval": version("lm_eval")},
    }


def keep(result: dict[str, Any], row: dict[str, Any], path: Path) -> None:
    """Put a row into the result, in the place of an older one of that name, and write it."""
    result["rows"] = [old for old in result["rows"] if old["what"] != row["what"]] + [row]
    path.write_text(json.dumps(result, indent=2) + "\n")


def plot(result: dict[str, Any], path: Path) -> None:
    """Ratios as bars, against what is asked for."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"][::-1]
    figure, axes = plt.subplots(figsize=(7, 0.55 * len(rows) + 1.2), layout="constrained")
    axes.barh([row["what"] for row in rows], [row["ratio"] for row in rows], color="#3b6ea5")
    for index, row in enumerate(rows):
        axes.text(row["ratio"], index, f" {row['ratio']:.1f}x", va="center")
        axes.plot([row["asked"]] * 2, [index - 0.4, index + 0.4], color="#c0392b")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("throughput over the peer's (red: what is asked for)")
    axes.set_xlim(0, max(row["ratio"] for row in rows) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print, and write `results/engine.json` and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many instances")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=("choice", "generate", "cost"))
    parser.add_argument("--name", default="engine", help="name of the result file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        options.out.write_text(json.dumps(child(json.loads(options.child))))
        return
    path = HERE / "results" / f"{options.name}.json"
    common = {"model": options.model, "threads": options.threads}
    result = facts(options.model, options.threads)
    if options.only and path.is_file():
        # What is measured apart is put beside what was measured before, on the same machine and model only.
        before = json.loads(path.read_text())
        if all(before[key] == result[key] for key in ("model", "machine", "versions")):
            result = before
    if options.only in (None, "choice"):
        for name, task, count, asked in CHOICE:
            job = {**common, "kind": "choice", "task": task, "count": int(count * options.scale)}
            keep(result, compare(name, job, "lm-eval", PEER_BATCHES, asked), path)
    if options.only in (None, "generate"):
        job = {**common, "kind": "generate", "count": int(64 * options.scale)}
        keep(result, compare("generation, mixed lengths", job, "model.generate", (16, 32), 1.5), path)
    if options.only in (None, "cost"):
        result["cost"] = cost(options.model, options.threads, options.scale)
        job = {**common, "kind": "choice", "task": CHOICE[0][1], "count": int(64 * options.scale)}
        result["limit"] = limit(job, options.threads)
    path.write_text(json.dumps(result, indent=2) + "\n")
    plot(result, HERE.parent / "docs" / "images" / f"{options.name}.png")
    print(f"written: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
