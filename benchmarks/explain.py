"""Activation patching, attributions and a DAS step beside TransformerLens and nnsight, on a small and a real decoder.

    python3 -m venv build/transformer-lens && build/transformer-lens/bin/pip install torch transformer-lens
    python3 -m venv build/nnsight && build/nnsight/bin/pip install torch nnsight
    python benchmarks/explain.py [--lens-python PYTHON] [--nnsight-python PYTHON] [--threads 2] [--only attribution]

Each measurement is a process of its own, in turn; of the times of one engine the fastest counts, of attributions the
fastest of three in a row as well. Seconds are without imports, loading and a first small pass, but with the run that
patches are taken from and whatever else is kept to go on from; those of a DAS step are without. The resident memory is
sampled from outside during that time. All engines load the same folder in float32 and work on all pairs at once.

TransformerLens patches by its own `get_act_patch_attn_head_out_by_pos`, which makes the logits of all positions;
nnsight by one trace for each patch, with the logits of the last position only. Weights take no gradients in any.

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
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
WORK = BUILD / "benchmarks" / "explain"
ASKED, TOLERANCE = 3.0, 1e-4
PAIRS, LENGTH, SEED = 64, 14, 0
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
STEPS, LR, PASSES = 10, 0.01, 3
POLL = 0.02
NAMES = ("Mary", "John", "Tom", "James", "Paul", "Mark", "Anna", "Kate", "Jack", "Sarah", "David", "Peter")
PLACES, THINGS = ("store", "park", "school", "station"), ("drink", "book", "ring", "gift")


class Parts(NamedTuple):
    """What is timed: the preparation, and the work with what it returns."""

    prepare: Callable[[], Any]
    work: Callable[[Any], Any]


class Case(NamedTuple):
    """A model of transformers, and the pairs as tensors."""

    model: Any
    base: Any
    source: Any
    right: Any
    wrong: Any
    layers: list[int]
    positions: list[int]

    @property
    def heads(self) -> int:
        """Of each layer."""
        return int(self.model.config.num_attention_heads)

    def candidates(self) -> list[tuple[int, int, int]]:
        """Layer, position and head of every patch."""
        return [
            (layer, position, head)
            for layer in self.layers
            for position in self.positions
            for head in range(self.heads)
        ]

    def metric(self, logits: Any, rows: Any = slice(None)) -> Any:
        """Difference of two logits at the last position, of each row."""
        last = logits[:, -1] if logits.dim() == 3 else logits
        right, wrong = self.right[rows], self.wrong[rows]
        return (last.gather(1, right[:, None]) - last.gather(1, wrong[:, None]))[:, 0]

    def metric_sum(self, logits: Any) -> Any:
        """The same, added up."""
        return self.metric(logits).sum()


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


def open_case(job: dict[str, Any]) -> Case:
    """The model of a job, in float32, and its pairs."""
    import torch
    from transformers import AutoModelForCausalLM

    # TransformerLens asks for this kernel where it loads a model itself.
    kind = "eager" if job["engine"] == "TransformerLens" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation=kind).eval()
    pairs = {name: torch.tensor(rows) for name, rows in json.loads(Path(job["pairs"]).read_text()).items()}
    return Case(model, *(pairs[name] for name in ("base", "source", "right", "wrong")), job["layers"], job["positions"])


# Engines


def ours_sweep(case: Case) -> Parts:
    """Patches by this library."""
    from uphold.models.sites.hooks import Edit
    from uphold.models.sites.layout import read_layout
    from uphold.models.sites.resume import keep
    from uphold.models.sites.run import last_positions, read
    from uphold.models.sites.site import Site
    from uphold.models.sites.sweep import mask_at, sweep

    layout, inputs = read_layout(case.model), {"input_ids": case.base}
    at = last_positions(inputs)

    def prepare() -> Any:
        sites = [Site("head", layer, head) for layer in case.layers for head in range(case.heads)]
        held, _ = read(layout, {"input_ids": case.source}, sites, at=at)
        return held, keep(layout, inputs, at)

    def work(prepared: Any) -> Any:
        held, kept = prepared
        masks = {position: mask_at(tuple(case.base.shape), position) for position in case.positions}
        edits = [
            [Edit(Site("head", layer, head), held[Site("head", layer, head)], masks[position])]
            for layer, position, head in case.candidates()
        ]
        return sweep(layout, kept, edits, case.metric)

    return Parts(prepare, work)


def ours_attribution(case: Case) -> Parts:
    """Attributions by this library."""
    import torch

    from uphold.models.sites.layout import read_layout
    from uphold.models.sites.run import last_positions, read
    from uphold.models.sites.screen import attributions

    layout, inputs = read_layout(case.model), {"input_ids": case.base}
    at, sites = last_positions(inputs), layout.sites("head")

    def work(held: Any) -> Any:
        found = attributions(layout, inputs, held, case.metric, at=at)
        return torch.stack([found[site] for site in sites])

    return Parts(lambda: read(layout, {"input_ids": case.source}, sites, at=at)[0], work)


def ours_das(case: Case, steps: int) -> Parts:
    """Training steps of a direction by this library."""
    import torch

    from uphold.explain.subspaces.config import SubspaceConfig
    from uphold.explain.subspaces.directions import Held, das
    from uphold.explain.subspaces.pairs import Pairs, activations
    from uphold.models.sites.layout import read_layout
    from uphold.models.sites.site import Site

    layer, position = middle(case)
    layout, site = read_layout(case.model), Site("residual", layer)
    where = torch.full((len(case.base),), position)
    inputs = {"input_ids": case.base}, {"input_ids": case.source}
    pairs = Pairs(*inputs, answers=case.right, expected=case.wrong, positions=where)
    config = SubspaceConfig(k=1, lr=LR, epochs=steps, batch=len(pairs), seed=SEED)

    def prepare() -> Any:
        return Held(activations(layout, pairs, site), activations(layout, pairs, site, source=True))

    return Parts(prepare, lambda held: das(layout, pairs, site, config, held=held))


def lens_model(case: Case) -> Any:
    """The model in TransformerLens, with the folder's weights as they are."""
    from transformer_lens.model_bridge import TransformerBridge

    name = case.model.config.name_or_path
    return TransformerBridge.boot_transformers(name, hf_model=case.model, tokenizer=None, device="cpu")


def lens_sweep(case: Case) -> Parts:
    """Patches by TransformerLens."""
    import pandas
    import torch
    from transformer_lens.patching import get_act_patch_attn_head_out_by_pos

    model = lens_model(case)
    names = [f"blocks.{layer}.attn.hook_z" for layer in case.layers]
    rows = pandas.DataFrame(case.candidates(), columns=["layer", "pos", "head"])

    def prepare() -> Any:
        with torch.no_grad():
            return model.run_with_cache(case.source, names_filter=names)[1]

    def work(cache: Any) -> Any:
        with torch.no_grad():
            return get_act_patch_attn_head_out_by_pos(
                model, case.base, cache, case.metric, index_axis_names=None, index_df=rows, reduce="none"
            ).values

    return Parts(prepare, work)


def lens_attribution(case: Case) -> Parts:
    """Attributions by TransformerLens: its cache of activations and gradients, which takes all pairs at once."""
    import torch
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    model = lens_model(case)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(case.model.config.num_hidden_layers)]

    def prepare() -> Any:
        with torch.no_grad():
            return cache_activation_and_gradient(model, case.source, case.metric_sum, names, compute_gradient=False)

    def work(source: Any) -> Any:
        # A hook at the first site fires where the gradient goes on behind it.
        found = cache_activation_and_gradient(model, case.base, case.metric_sum, ["hook_embed", *names])
        each = [
            ((source.activations[name] - found.activations[name]) * found.gradients[name]).sum(-1) for name in names
        ]
        return torch.stack(each).permute(0, 3, 1, 2).flatten(0, 1)

    return Parts(prepare, work)


def lens_das(case: Case, steps: int) -> Parts:
    """Training steps of a direction in TransformerLens."""
    import torch

    layer, position = middle(case)
    model, name = lens_model(case), f"blocks.{layer}.hook_resid_post"
    for weight in case.model.parameters():
        weight.requires_grad_(False)

    def prepare() -> Any:
        with torch.no_grad():
            runs = [model.run_with_cache(ids, names_filter=[name])[1] for ids in (case.base, case.source)]
        return [cache[name][:, position] for cache in runs]

    def patched(values: Any) -> Any:
        def put(old: Any, hook: Any) -> Any:
            new = old.clone()
            new[:, position] = values
            return new

        return model.run_with_hooks(case.base, fwd_hooks=[(name, put)])[:, -1]

    return Parts(prepare, lambda held: trained(case, *held, patched, steps))


def nnsight_sweep(case: Case) -> Parts:
    """Patches by nnsight."""
    import torch
    from nnsight import NNsight

    model = NNsight(case.model)
    width = case.model.model.layers[0].self_attn.head_dim

    def prepare() -> Any:
        return nnsight_heads(model, case.source, case.layers)

    def work(held: Any) -> Any:
        found = []
        for layer, position, head in case.candidates():
            part = slice(head * width, (head + 1) * width)
            with torch.no_grad(), model.trace(input_ids=case.base, use_cache=False, logits_to_keep=1):
                model.model.layers[layer].self_attn.o_proj.input[:, position, part] = held[layer][:, position, part]
                logits = model.lm_head.output.save()
            found.append(case.metric(logits))
        return torch.stack(found)

    return Parts(prepare, work)


def nnsight_heads(model: Any, ids: Any, layers: list[int]) -> dict[int, Any]:
    """What goes into the output projections of attention."""
    import nnsight
    import torch

    with torch.no_grad(), model.trace(input_ids=ids, use_cache=False, logits_to_keep=1):
        held = nnsight.save({})
        for layer in layers:
            held[layer] = model.model.layers[layer].self_attn.o_proj.input
    return dict(held)


def nnsight_attribution(case: Case) -> Parts:
    """Attributions by nnsight."""
    import nnsight
    import torch

    model, layers = nnsight.NNsight(case.model), list(range(case.model.config.num_hidden_layers))
    for weight in case.model.parameters():
        weight.requires_grad_(False)

    def work(source: Any) -> Any:
        with model.trace(input_ids=case.base, use_cache=False, logits_to_keep=1):
            held, slopes = nnsight.save({}), nnsight.save({})
            model.model.embed_tokens.output.requires_grad_(True)
            for layer in layers:
                held[layer] = model.model.layers[layer].self_attn.o_proj.input
            value = case.metric_sum(model.lm_head.output)
            with value.backward():
                for layer in reversed(layers):
                    slopes[layer] = held[layer].grad
        each = torch.stack([(source[layer] - held[layer].detach()) * slopes[layer] for layer in layers])
        return each.unflatten(-1, (case.heads, -1)).sum(-1).permute(0, 3, 1, 2).flatten(0, 1)

    return Parts(lambda: nnsight_heads(model, case.source, layers), work)


def nnsight_das(case: Case, steps: int) -> Parts:
    """Training steps of a direction in nnsight."""
    import torch
    from nnsight import NNsight

    layer, position = middle(case)
    model = NNsight(case.model)
    for weight in case.model.parameters():
        weight.requires_grad_(False)

    def held(ids: Any) -> Any:
        with torch.no_grad(), model.trace(input_ids=ids, use_cache=False, logits_to_keep=1):
            found = model.model.layers[layer].output[:, position].save()
        return found

    def patched(values: Any) -> Any:
        with model.trace(input_ids=case.base, use_cache=False, logits_to_keep=1):
            new = model.model.layers[layer].output.clone()
            new[:, position] = values
            model.model.layers[layer].output = new
            logits = model.lm_head.output.save()
        return logits[:, -1]

    return Parts(lambda: (held(case.base), held(case.source)), lambda both: trained(case, *both, patched, steps))


def middle(case: Case) -> tuple[int, int]:
    """Layer and position of the subspace."""
    return int(case.model.config.num_hidden_layers) // 2, LENGTH // 2


def trained(case: Case, base: Any, source: Any, patched: Callable[[Any], Any], steps: int) -> Any:
    """The training that `uphold.explain.subspaces.directions.das` does, around the peers' forward passes."""
    import torch
    from torch.nn import functional

    start = torch.randn(base.shape[1], 1, generator=torch.Generator().manual_seed(SEED))
    raw = torch.linalg.qr(start).Q.requires_grad_(True)
    solver = torch.optim.Adam([raw], lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(solver, lambda step: 1 - 0.9 * step / steps)
    for _ in range(steps):
        basis = torch.linalg.qr(raw).Q
        loss = functional.cross_entropy(patched(base + (source - base) @ basis @ basis.T), case.wrong)
        solver.zero_grad()
        loss.backward()
        solver.step()
        schedule.step()
    return raw.detach() / raw.detach().norm()


ENGINES: dict[str, dict[str, Callable[..., Parts]]] = {
    "ours": {"sweep": ours_sweep, "attribution": ours_attribution, "das": ours_das},
    "TransformerLens": {"sweep": lens_sweep, "attribution": lens_attribution, "das": lens_das},
    "nnsight": {"sweep": nnsight_sweep, "attribution": nnsight_attribution, "das": nnsight_das},
}
PACKAGES = {"TransformerLens": "transformer-lens", "nnsight": "nnsight"}


# Measuring


def resident(process: int) -> float:
    """MB of memory that a process has; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS")), 0.0)


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
        "before_mb": before,
        "version": version(package) if package else "",
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
    return {**facts, "peak_mb": max([facts["before_mb"], *during])}


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
    found = {name: float((one - mine).abs().max()) for name, one in tensors.items()}
    return {"largest_difference": found, "largest_number": float(mine.abs().max())}


def compare(name: str, job: dict[str, Any], pythons: dict[str, str], repeats: int, whole: int) -> dict[str, Any]:
    """One row: all engines in turn, several times."""
    part = len(job["layers"]) * len(job["positions"])
    times = {"sweep": whole / part, "attribution": 1.0, "das": 1.0}[job["kind"]]
    results = {engine: WORK / f"{engine}.safetensors" for engine in pythons}
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in pythons}
    for _ in range(repeats):
        for engine, python in pythons.items():
            runs[engine].append(measure({**job, "engine": engine, "result": str(results[engine])}, python))
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
        "peak_mb": {engine: round(max(one["peak_mb"] for one in found)) for engine, found in runs.items()},
        "before_mb": {engine: round(facts["before_mb"]) for engine, facts in best.items()},
        **differences(results, job["kind"]),
    }
    if times > 1:
        row["part"] = {"layers": job["layers"], "positions": job["positions"], "share": round(1 / times, 4)}
    row["agrees"] = max(row["largest_difference"].values()) <= TOLERANCE
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


if __name__ == "__main__":
    main()
