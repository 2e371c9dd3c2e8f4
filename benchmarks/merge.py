"""The merge engine beside mergekit: two synthetic Llama-shaped models of about 1 GB with their base, and a real pair.

    python3 -m venv build/mergekit
    build/mergekit/bin/pip install torch mergekit "pydantic<2.11"
    python benchmarks/merge.py [--peer-python build/mergekit/bin/python] [--scale 1.0] [--only ties]

mergekit has an environment of its own, as its pins exclude other packages' versions. Each measurement is a process of
its own: the seconds are those of the merge itself, without imports, until the result is synced to the disk; anonymous
memory (`RssAnon`) is sampled from outside every few milliseconds. Inputs are in the page cache for both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "benchmarks" / "merge"
PEER = HERE.parent / "build" / "mergekit" / "bin" / "python"
ASKED = 3.0
PAIR = ("embedded:v1", "embedded:v2")
HIDDEN, VOCABULARY, LAYERS, SPREAD, CHANGE = 2048, 32_000, 3, 0.02, 0.001
POLL, PART = 0.004, 1 << 24


def recipes(base: str, one: str, other: str | None) -> dict[str, dict[str, Any]]:
    """What is merged; without a third model the base is the first of the pair, and Model Stock has too few."""
    first = other or base

    def model(path: str, **parameters: float) -> dict[str, Any]:
        return {"model": path, "parameters": parameters} if parameters else {"model": path}

    changed = [path for path in (one, other) if path]
    found = {
        "linear": {"merge_method": "linear", "models": [model(first, weight=0.5), model(one, weight=0.5)]},
        "SLERP": {
            "merge_method": "slerp",
            "models": [model(first), model(one)],
            "base_model": first,
            "parameters": {"t": 0.3},
        },
        "TIES, density 0.5": {
            "merge_method": "ties",
            "models": [model(path, weight=0.5, density=0.5) for path in changed],
            "base_model": base,
        },
        "DARE-TIES, density 0.5": {
            "merge_method": "dare_ties",
            "models": [model(path, weight=0.5, density=0.5) for path in changed],
            "base_model": base,
        },
    }
    if other:
        found["Model Stock"] = {
            "merge_method": "model_stock",
            "models": [model(path) for path in changed],
            "base_model": base,
        }
    return {name: {**recipe, "dtype": "float32"} for name, recipe in found.items()}


# Models


def shapes(scale: float) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Config and tensors of a Llama-shaped model; at scale 1, 1.05 GB in float32, the embedding alone 262 MB."""
    hidden = max(64, round(HIDDEN * math.sqrt(scale) / 64) * 64)
    vocabulary, inner, heads = max(256, round(VOCABULARY * math.sqrt(scale))), hidden * 11 // 4, max(1, hidden // 64)
    narrow = hidden // heads * max(1, heads // 8)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": narrow * heads // hidden,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "dtype": "float32",
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(LAYERS):
        where = f"model.layers.{layer}"
        found |= {
            f"{where}.self_attn.q_proj.weight": (hidden, hidden),
            f"{where}.self_attn.k_proj.weight": (narrow, hidden),
            f"{where}.self_attn.v_proj.weight": (narrow, hidden),
            f"{where}.self_attn.o_proj.weight": (hidden, hidden),
            f"{where}.mlp.gate_proj.weight": (inner, hidden),
            f"{where}.mlp.up_proj.weight": (inner, hidden),
            f"{where}.mlp.down_proj.weight": (hidden, inner),
            f"{where}.input_layernorm.weight": (hidden,),
            f"{where}.post_attention_layernorm.weight": (hidden,),
        }
    return config, found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def synthetic(folder: Path, scale: float) -> list[str]:
    """A base and two models that came from it and partly agree in what they changed, made once; paths of the three."""
    import torch
    from safetensors.torch import save_file

    config, tensors = shapes(scale)
    paths = [folder / name for name in ("base", "one", "other")]
    for number, path in enumerate(paths):
        if (path / "config.json").is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        start, shared, own = (torch.Generator().manual_seed(seed) for seed in (0, 1, 1 + number))
        made = {}
        for name, shape in tensors.items():
            made[name] = torch.randn(shape, generator=start).mul_(SPREAD)
            if number:
                for generator in (shared, own):
                    made[name].add_(torch.randn(shape, generator=generator), alpha=CHANGE)
        save_file(made, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config, indent=2))
    return [str(path) for path in paths]


# Measuring


def anonymous(process: int | str = "self") -> float:
    """MB of anonymous memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon")), 0.0)


def weights_of(path: str | Path) -> list[Path]:
    """The files that a folder's weights are in."""
    return sorted(Path(path).glob("*.safetensors"))


def warm(paths: list[str]) -> int:
    """Read all weights once, so that they are in the page cache; their bytes."""
    read = 0
    for path in paths:
        for file in weights_of(path):
            with file.open("rb") as stream:
                while part := stream.read(PART):
                    read += len(part)
    return read


def sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def ours(job: dict[str, Any]) -> Callable[[], Any]:
    """The merge by this library."""
    from uphold.merge.engine.run import merge

    return lambda: merge(job["recipe"], out=job["folder"], threads=job["threads"])


def mergekit(job: dict[str, Any]) -> Callable[[], Any]:
    """The merge by mergekit."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    # The number of threads is in the environment.
    options = MergeOptions(quiet=True, copy_tokenizer=False, random_seed=0)
    recipe = MergeConfiguration.model_validate(job["recipe"])
    return lambda: run_merge(recipe, job["folder"], options)


ENGINES = {"ours": ours, "mergekit": mergekit}


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one job in this process."""
    # One small merge first: what either loads on its first use is not counted.
    warming = {**job, "recipe": job["small"], "folder": f"{job['folder']}-small"}
    ENGINES[job["engine"]](warming)()
    shutil.rmtree(warming["folder"])
    run = ENGINES[job["engine"]](job)
    before = anonymous()
    started, cpu = time.perf_counter(), time.process_time()
    run()
    sync(Path(job["folder"]))
    seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_s": spent, "before_mb": before, "peer_version": _version("mergekit")}


def measure(job: dict[str, Any], python: str) -> dict[str, Any]:
    """Measure one job in a process of its own."""
    folder, out = Path(job["folder"]), WORK / "result.json"
    shutil.rmtree(folder, ignore_errors=True)
    out.unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
    if job["engine"] != "ours":
        environment.pop("PYTHONPATH", None)
    command = [python, __file__, "--child", json.dumps(job), "--out", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{job['engine']} failed: {' '.join(command)}")
    return {**json.loads(out.read_text()), "peak_mb": peak}


def copied(paths: list[str]) -> float:
    """Bytes read and written in a second by a plain sequential copy of these weights, synced."""
    target, count = WORK / "copy", 0
    warm(paths)
    started = time.perf_counter()
    for path in paths:
        for file in weights_of(path):
            with file.open("rb") as source, target.open("wb") as sink:
                while part := source.read(PART):
                    sink.write(part)
                    count += 2 * len(part)
                sink.flush()
                os.fsync(sink.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return count / seconds


def differences(one: Path, other: Path) -> dict[str, float]:
    """How far two results are apart: at most, and how many entries by more than 1e-5."""
    from uphold.models.checkpoint import open_checkpoint

    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        assert set(ours.infos) == set(theirs.infos)
        largest, apart = 0.0, 0
        for name in ours.infos:
            for mine, his in _parts(ours.tensor(name).flatten(), theirs.tensor(name).flatten()):
                gap = (mine - his).abs()
                largest, apart = max(largest, float(gap.max())), apart + int((gap > 1e-5).sum())
    return {"largest_difference": largest, "entries_apart": apart}


def _parts(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    return zip(one.split(PART), other.split(PART), strict=True)


def compare(
    name: str, recipe: dict[str, Any], small: dict[str, Any], options: argparse.Namespace, copy_rate: float
) -> dict[str, Any]:
    """One row: ours, the peer, ours again; of our two times the faster one counts."""
    paths = [model["model"] for model in recipe["models"]]
    paths += [recipe["base_model"]] if recipe.get("base_model") not in (None, *paths) else []
    read = warm(paths)
    job = {"recipe": recipe, "small": small, "threads": options.threads}
    our_folder, their_folder = WORK / "ours", WORK / "theirs"
    mine = {**job, "engine": "ours", "folder": str(our_folder)}
    first = measure(mine, sys.executable)
    theirs = measure({**job, "engine": "mergekit", "folder": str(their_folder)}, str(options.peer_python))
    second = measure(mine, sys.executable)
    best = min(first, second, key=lambda one: one["seconds"])
    moved = read + sum(file.stat().st_size for file in weights_of(our_folder))
    row = {
        "what": name,
        "ours": round(best["seconds"], 3),
        "peer_name": f"mergekit {theirs['peer_version']}",
        "peer": round(theirs["seconds"], 3),
        "unit": "s",
        "ratio": round(theirs["seconds"] / best["seconds"], 2),
        "asked": ASKED,
        "input_mb": round(read / 1e6, 1),
        "anonymous_mb": {"ours": round(max(first["peak_mb"], second["peak_mb"])), "peer": round(theirs["peak_mb"])},
        "anonymous_before_mb": {"ours": round(best["before_mb"]), "peer": round(theirs["before_mb"])},
        "cpu_s": {"ours": round(best["cpu_s"], 2), "peer": round(theirs["cpu_s"], 2)},
        "mb_per_s": {"ours": round(moved / best["seconds"] / 1e6), "peer": round(moved / theirs["seconds"] / 1e6)},
        "share_of_copy": round(moved / best["seconds"] / copy_rate, 3),
    }
    if "dare" not in recipe["merge_method"]:
        row |= differences(our_folder, their_folder)
    for folder in (our_folder, their_folder):
        shutil.rmtree(folder)
    print(json.dumps(row), flush=True)
    return row


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """A result without rows: what was measured where, with which versions."""
    from uphold.models.load import library_versions

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    peer = subprocess.run(
        [options.peer_python, "-c", "import torch; print(torch.__version__)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {
        "name": "merge",
        "rows": [],
        "scale": options.scale,
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "threads": options.threads,
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "versions": library_versions() | {"peer's torch": peer},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return ""


def main() -> None:
    """Measure, print, and write `results/merge.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer-python", type=Path, default=PEER, help="the python of the environment that mergekit is in"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic models; 1 is 1.05 GB each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="part of the names of what to measure, in any case of letters")
    parser.add_argument("--name", default="merge", help="name of the result file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        options.out.write_text(json.dumps(child(json.loads(options.child))))
        return
    if not options.peer_python.is_file():
        parser.error(f"{options.peer_python} is missing: the first lines of --help make that environment")
    from uphold.models.reference import find_model

    WORK.mkdir(parents=True, exist_ok=True)
    base, one, other = synthetic(WORK / f"models-{options.scale:g}", options.scale)
    old, new = (str(find_model(name).base) for name in PAIR)
    copy_rate = copied([one, other])
    result = facts(options)
    jobs = {f"synthetic: {name}": recipe for name, recipe in recipes(base, one, other).items()}
    jobs |= {f"{' and '.join(PAIR)}: {name}": recipe for name, recipe in recipes(old, new, None).items()}
    small = recipes(old, new, None)["linear"]
    for name, recipe in jobs.items():
        if options.only.lower() in name.lower():
            result["rows"].append(compare(name, recipe, small, options, copy_rate))
    big = [row for row in result["rows"] if row["what"].startswith("synthetic")]
    _, tensors = shapes(options.scale)
    result["limit"] = {
        "sequential_copy_mb_per_s": round(copy_rate / 1e6),
        "share_of_copy": {row["what"]: row["share_of_copy"] for row in big},
        "largest_tensor_mb": round(max(4 * math.prod(shape) for shape in tensors.values()) / 1e6, 1),
        "counted": "bytes of all inputs, read once, and of the result, over the seconds, against a copy with fsync",
    }
    path = HERE / "results" / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
