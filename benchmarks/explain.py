"""Activation patching, attributions and a DAS step beside TransformerLens and nnsight, on a small and a real decoder.

    python3 -m venv build/transformer-lens && build/transformer-lens/bin/pip install torch transformer-lens
    python3 -m venv build/nnsight && build/nnsight/bin/pip install torch nnsight
    python benchmarks/explain.py [--lens-python PYTHON] [--nnsight-python PYTHON] [--threads 2] [--only attribution]

Each measurement is a process of its own, in turn; of the times of one engine the fastest counts, of attributions the
fastest of three in a row as well. Seconds are without imports, loading and a first small pass, but with the run that
patches are taken from and whatever else is kept to go on from; those of a DAS step are without. The resident memory of
the process is sampled from outside during that time. All engines load the same folder in float32, with frozen weights,
take the same tokens, as many threads, and all pairs at once; the ratio is to the quicker peer. Numbers that are further
from ours than 1e-4 end the script with an error, after the result is written.

TransformerLens patches and attributes by its own functions (`get_act_patch_attn_head_out_by_pos` and
`cache_activation_and_gradient`), which make the logits of all positions, and with the eager kernel of attention that it
asks for; nnsight patches by one trace each. All else has the logits of the last position only.

Of the large decoder two layers and two positions are patched, at all heads: symmetric about the middle, as the cost of
a patch that is resumed falls with both, and does so as a product. The seconds given are those of the preparation and of
the part, times all patches over those in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from explain_engines import ENGINES, SEED, STEPS, open_case

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
WORK = BUILD / "benchmarks" / "explain"
ASKED, TOLERANCE = 3.0, 1e-4
PAIRS, LENGTH = 64, 14
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.08,
}
LARGE = "embedded:smollm2"
PART = {"layers": [4, 25], "positions": [3, 10]}
PASSES = 3
PACKAGES = {"TransformerLens": "transformer-lens", "nnsight": "nnsight"}
POLL = 0.02
NAMES = ("Mary", "John", "Tom", "James", "Paul", "Mark", "Anna", "Kate", "Jack", "Sarah", "David", "Peter")
PLACES, THINGS = ("store", "park", "school", "station"), ("drink", "book", "ring", "gift")


# Models and pairs


def small_model(folder: Path, like: Path) -> Path:
    """A Llama-shaped decoder of random weights, made once; TransformerLens asks for the tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not (folder / "config.json").is_file():
        torch.manual_seed(SEED)
        AutoTokenizer.from_pretrained(like).save_pretrained(folder)
        LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    return folder


def large_model(folder: Path) -> Path:
    """The real decoder in float32, out of the quantised file that it comes in, made once."""
    from uphold.models.load import load

    if not (folder / "config.json").is_file():
        loaded = load(LARGE)
        loaded.tokenizer.save_pretrained(folder)
        loaded.model.save_pretrained(folder)
    return folder


def random_pairs() -> dict[str, Any]:
    """Tokens at random, which all differ."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    base, source = torch.randint(3, SMALL["vocab_size"], (2, PAIRS, LENGTH), generator=generator).tolist()
    right, wrong = torch.randint(3, SMALL["vocab_size"], (2, PAIRS), generator=generator).tolist()
    return {"base": base, "source": source, "right": right, "wrong": wrong}


def name_pairs(folder: Path) -> dict[str, Any]:
    """Who gives to whom, and the same sentence with three other names; all of the same number of tokens."""
    import random

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    known = [name for name in NAMES if len(ids(f" {name}")) == 1]
    dice = random.Random(SEED)
    found: dict[str, Any] = {"base": [], "source": [], "right": [], "wrong": []}
    for _ in range(PAIRS):
        one, two, *others = dice.sample(known, 5)
        place, thing = dice.choice(PLACES), dice.choice(THINGS)
        frame = "When {} and {} went to the " + place + ", {} gave a " + thing + " to"
        found["base"].append(ids(frame.format(one, two, two)))
        found["source"].append(ids(frame.format(*others)))
        found["right"].append(ids(f" {one}")[0])
        found["wrong"].append(ids(f" {two}")[0])
    lengths = {len(row) for row in (*found["base"], *found["source"])}
    assert lengths == {LENGTH}, lengths
    return found


# Measuring


def resident(process: int) -> float:
    """MiB of memory that a process has; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one job in this process; the result is written beside its facts."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(job["threads"])
    case = open_case(job)
    engine = ENGINES[job["engine"]][job["kind"]]
    few = case._replace(layers=case.layers[-1:], positions=case.positions[-1:])
    if job["kind"] == "das":
        few_parts, parts = engine(case, 1), engine(case, STEPS)
    else:
        few_parts, parts = engine(few), engine(case)
    # What is made on first use is not counted.
    few_parts.work(few_parts.prepare())
    before = resident(os.getpid())
    started = time.monotonic()
    took = []
    for _ in range(PASSES if job["kind"] == "attribution" else 1):
        begun, cpu = time.monotonic(), time.process_time()
        prepared = parts.prepare()
        ready = time.monotonic()
        result = parts.work(prepared)
        done = time.monotonic()
        took.append({"prepare_s": ready - begun, "work_s": done - ready, "cpu_s": time.process_time() - cpu})
    ended = time.monotonic()
    save_file({"result": result.detach().double().contiguous()}, job["result"])
    package = PACKAGES.get(job["engine"])
    return {
        "started": started,
        "ended": ended,
        **min(took, key=lambda one: one["prepare_s"] + one["work_s"]),
        "before_mib": before,
        "version": version(package) if package else "",
        "terms": [str(case.model.dtype), torch.get_num_threads(), len(case.base), case.base.shape[1]],
    }


def measure(job: dict[str, Any], python: str) -> dict[str, Any]:
    """Measure one job in a process of its own."""
    out = WORK / "facts.json"
    out.unlink(missing_ok=True)
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment = os.environ | quiet | {"OMP_NUM_THREADS": str(job["threads"])}
    if job["engine"] != "ours":
        environment.pop("PYTHONPATH", None)
    command = [python, __file__, "--child", json.dumps(job), "--out", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    samples = []
    while process.poll() is None:
        samples.append((time.monotonic(), resident(process.pid)))
        time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{job['engine']} failed: {' '.join(command)}")
    facts = json.loads(out.read_text())
    during = [memory for moment, memory in samples if facts["started"] <= moment <= facts["ended"]]
    return {**facts, "peak_mib": max([facts["before_mib"], *during])}


def seconds(facts: dict[str, Any], times: float) -> float:
    """Of the whole, where the work was a part of it."""
    return float(facts["prepare_s"] + facts["work_s"] * times)


def differences(results: dict[str, Path], kind: str) -> dict[str, Any]:
    """How far results are from ours at most, and how large ours are."""
    from safetensors.torch import load_file

    tensors = {name: load_file(path)["result"] for name, path in results.items()}
    mine = tensors.pop("ours")
    if kind == "das":
        # A direction and its opposite are the same subspace.
        tensors = {name: one * (one * mine).sum().sign() for name, one in tensors.items()}
    if wrong := {name: tuple(one.shape) for name, one in tensors.items() if one.shape != mine.shape}:
        raise SystemExit(f"numbers of shape {wrong}: expected {tuple(mine.shape)}, as ours")
    found = {name: float((one - mine).abs().max()) for name, one in tensors.items()}
    return {
        "largest_difference": found,
        "largest_number": float(mine.abs().max()),
        "agrees": all(value <= TOLERANCE for value in found.values()),
    }


def compare(name: str, job: dict[str, Any], pythons: dict[str, str], repeats: int, whole: int) -> dict[str, Any]:
    """One row: all engines in turn, several times."""
    part = len(job["layers"]) * len(job["positions"])
    times = {"sweep": whole / part, "attribution": 1.0, "das": 1.0}[job["kind"]]
    results = {engine: WORK / f"{engine}.safetensors" for engine in pythons}
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in pythons}
    for _ in range(repeats):
        for engine, python in pythons.items():
            runs[engine].append(measure({**job, "engine": engine, "result": str(results[engine])}, python))
    terms = {engine: found[0]["terms"] for engine, found in runs.items()}
    if any(one != terms["ours"] for one in terms.values()):
        raise SystemExit(f"not the same precision, threads, pairs and positions: {terms}")
    best = {engine: min(found, key=lambda one: seconds(one, times)) for engine, found in runs.items()}
    # Of a DAS run a step is what counts; what the site holds is read once, before all steps.
    took = {
        engine: facts["work_s"] / STEPS if job["kind"] == "das" else seconds(facts, times)
        for engine, facts in best.items()
    }
    peers = {engine: took[engine] for engine in took if engine != "ours"}
    quicker = min(peers, key=lambda engine: peers[engine])
    row = {
        "what": name,
        "ours": round(took["ours"], 4),
        "peer_name": f"{quicker} {best[quicker]['version']}",
        "peer": round(took[quicker], 4),
        "unit": "s",
        "ratio": round(took[quicker] / took["ours"], 2),
        **({"asked": ASKED} if job["kind"] == "sweep" else {}),
        "peers": {f"{engine} {best[engine]['version']}": round(value, 4) for engine, value in peers.items()},
        "ratios": {engine: round(value / took["ours"], 2) for engine, value in peers.items()},
        "measured_s": {
            engine: {"preparation": round(facts["prepare_s"], 4), "work": round(facts["work_s"], 4)}
            for engine, facts in best.items()
        },
        "all_work_s": {engine: [round(one["work_s"], 4) for one in found] for engine, found in runs.items()},
        "cpu_s": {engine: round(facts["cpu_s"], 2) for engine, facts in best.items()},
        "peak_mib": {engine: round(max(one["peak_mib"] for one in found)) for engine, found in runs.items()},
        "before_mib": {engine: round(facts["before_mib"]) for engine, facts in best.items()},
        **differences(results, job["kind"]),
    }
    if times > 1:
        row["part"] = {"layers": job["layers"], "positions": job["positions"], "share": round(1 / times, 4)}
    print(json.dumps(row), flush=True)
    return row


def facts(options: argparse.Namespace, pythons: dict[str, str]) -> dict[str, Any]:
    """A result without rows: what was measured where, with which versions."""
    from uphold.models.load import library_versions

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    asking = "import json, torch, transformers; print(json.dumps([torch.__version__, transformers.__version__]))"
    found = {}
    for engine, python in pythons.items():
        if engine != "ours":
            said = subprocess.run([python, "-c", asking], check=True, capture_output=True, text=True).stdout
            found |= dict(zip((f"{engine}'s torch", f"{engine}'s transformers"), json.loads(said), strict=True))
    return {
        "name": "explain",
        "rows": [],
        "pairs": PAIRS,
        "positions": LENGTH,
        "repeats": options.repeats,
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "threads": options.threads,
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "versions": library_versions() | found,
    }


def jobs(threads: int) -> dict[str, tuple[dict[str, Any], int]]:
    """What is measured, by name, and the number of places in a layer and at a position that a whole sweep has."""
    large = large_model(WORK / "smollm2")
    small = small_model(WORK / "small", large)
    layers = list(range(SMALL["num_hidden_layers"])), json.loads((large / "config.json").read_text())
    cases = {
        "6 layers": (small, random_pairs(), {"layers": layers[0], "positions": list(range(LENGTH))}, len(layers[0])),
        "SmolLM2-135M": (large, name_pairs(large), PART, layers[1]["num_hidden_layers"]),
    }
    kinds = {"sweep": "activation patching", "attribution": "attributions", "das": "DAS, one step"}
    found = {}
    for name, (model, pairs, part, count) in cases.items():
        path = WORK / f"{name}.json"
        path.write_text(json.dumps(pairs))
        common = {"model": str(model), "pairs": str(path), "threads": threads, **part}
        for kind, words in kinds.items():
            found[f"{name}: {words}"] = ({**common, "kind": kind}, count * LENGTH)
    return found


def main() -> None:
    """Measure, print, and write `results/explain.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lens, nnsight = (BUILD / name / "bin" / "python" for name in ("transformer-lens", "nnsight"))
    parser.add_argument("--lens-python", type=Path, default=lens, help="of the environment of TransformerLens")
    parser.add_argument("--nnsight-python", type=Path, default=nnsight, help="of the environment of nnsight")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=2, help="measurements of each engine")
    parser.add_argument("--only", default="", help="part of the names of what to measure, in any case of letters")
    parser.add_argument("--name", default="explain", help="name of the result file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        options.out.write_text(json.dumps(child(json.loads(options.child))))
        return
    for python in (options.lens_python, options.nnsight_python):
        if not python.is_file():
            parser.error(f"{python} is missing: the first lines of --help make that environment")
    WORK.mkdir(parents=True, exist_ok=True)
    pythons = {
        "ours": sys.executable,
        "TransformerLens": str(options.lens_python),
        "nnsight": str(options.nnsight_python),
    }
    result = facts(options, pythons)
    for name, (job, whole) in jobs(options.threads).items():
        if options.only.lower() in name.lower():
            result["rows"].append(compare(name, job, pythons, options.repeats, whole))
    path = HERE / "results" / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path.relative_to(HERE.parent)}")
    if wrong := [row["what"] for row in result["rows"] if not row["agrees"]]:
        raise SystemExit(f"numbers are further than {TOLERANCE} from ours: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
