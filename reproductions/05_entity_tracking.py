"""Entity tracking (arXiv:2402.14811): a circuit, what it carries, and which part of it explains a tuned model's gain.

    python reproductions/05_entity_tracking.py [--seeds 0 1 2]

A two-block decoder learns to say what is in the box that it is asked for, of four. A is the first checkpoint that
reaches 60 %, B the same 25 steps later. Circuits are chosen on 2,000 prompts and measured on 2,000 others; patching
across models has 2,000 of its own.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from evidence import RESULTS, Claim, mean_and_spread, use_one_thread, write_evidence
from transformers import GPT2Config, GPT2LMHeadModel

from uphold.explain.circuit import CircuitConfig, circuit
from uphold.explain.circuits.compare import by_layer_and_role
from uphold.explain.circuits.cross import cross_effects, cross_screen
from uphold.explain.circuits.effects import Effects
from uphold.explain.circuits.entity_tracking import DESIDERATA, Compact, corrupted
from uphold.explain.circuits.masking import MaskConfig, learn_mask
from uphold.explain.circuits.measures import solved
from uphold.explain.circuits.paths import Receivers, path_patching
from uphold.explain.circuits.prompts import OTHER, Node, Prompts, nodes_of
from uphold.explain.cmap import CmapConfig, cmap
from uphold.explain.edges import EdgesConfig, edges
from uphold.models.sites.layout import read_layout

NAME, PAPER = "05_entity_tracking", "arXiv:2402.14811"
TASK = Compact()
COUNT, EVERY, ENOUGH, MORE, MOST = 2000, 25, 0.6, 25, 1500
FETCHERS, READERS = "block 1 at last", "block 0 at object"


def trained(seed: int) -> tuple[Any, Any, int]:
    """A, B, and the steps that A took."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=TASK.vocabulary,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.12,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(1000 + seed)
    watched = TASK.prompts(TASK.scenes(1000, generator))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first, until = None, MOST
    for step in range(1, MOST + MORE + 1):
        ids, targets = TASK.training(64, generator)
        model.train()
        logits = model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if first is None and step % EVERY == 0 and accuracy(model, watched) >= ENOUGH:
            first, until = copy.deepcopy(model).eval(), step + MORE
        if step == until:
            break
    if first is None:
        raise SystemExit(f"seed {seed}: no checkpoint reached {ENOUGH:.0%} in {MOST} steps")
    return first, model.eval(), until - MORE


def accuracy(model: Any, prompts: Prompts) -> float:
    """Share of prompts answered rightly."""
    return float(solved(read_layout(model), prompts).float().mean())


def run_seed(seed: int) -> dict[str, Any]:
    """All that is measured with one seed."""
    old, new, steps = trained(seed)
    generator = torch.Generator().manual_seed(2000 + seed)
    prompts = TASK.prompts(TASK.scenes(2 * COUNT, generator))
    fresh = TASK.prompts(TASK.scenes(COUNT, generator))
    found = circuit(old, prompts, new=new, config=CircuitConfig(target=0.95, seed=seed))
    print(f"seed {seed}: A after {steps} steps\n{found}", flush=True)
    layout, later = read_layout(old), read_layout(new)
    groups = {**by_layer_and_role(nodes_of(layout, [*prompts.roles, OTHER])), "circuit": found.nodes}
    across = cmap(old, new, fresh, groups=groups, config=CmapConfig(randoms=10, seed=seed))
    print(across, flush=True)
    by_input = cmap(old, new, fresh, groups={FETCHERS: groups[FETCHERS]}, config=CmapConfig("input", 0))
    return {
        "steps": steps,
        "circuit": found.to_dict(),
        "cmap": across.to_dict(),
        "recovered": {name: across.recovered(name) for name in groups},
        "recovered by inputs": by_input.recovered(FETCHERS),
        "screen": screened(layout, later, fresh),
        "dcm": {model: masks(one, seed) for model, one in (("A", layout), ("B", later))},
        **chains(old, layout, generator),
    }


def screened(old: Any, new: Any, prompts: Prompts) -> dict[str, float]:
    """How the gradients' estimate of patching each node across agrees with patching it."""
    nodes = [node for node in nodes_of(old, [*prompts.roles, OTHER]) if node.role != "label"]
    effects = cross_effects(old, new, prompts, nodes, measure="logit-difference")
    estimated = cross_screen(old, new, prompts, nodes)
    pair = torch.stack([effects.change, torch.tensor([estimated[node] for node in nodes])])
    tops = [set(row.abs().topk(4).indices.tolist()) for row in pair]
    return {"pearson": float(torch.corrcoef(pair)[0, 1]), "shared of top 4": len(tops[0] & tops[1])}


def masks(layout: Any, seed: int) -> dict[str, Any]:
    """What the heads at the last position carry, by desideratum."""
    group = nodes_of(layout, ["last"])
    found = {}
    for what in DESIDERATA:
        pairs = TASK.pairs(what, COUNT, torch.Generator().manual_seed(3000 + seed))
        mask = learn_mask(layout, pairs, group, config=MaskConfig(seed=seed))
        found[what] = {"accuracy": mask.accuracy, "floor": mask.floor, "heads": len(mask.patched)}
    return found


def chains(model: Any, layout: Any, generator: torch.Generator) -> dict[str, Any]:
    """Scores of paths to the answer and into block 1, and how estimates of edges agree with patching them."""
    scenes = TASK.scenes(300, generator)
    other = corrupted(scenes, generator, labels=TASK.labels, objects=TASK.objects)
    clean, corrupt = TASK.prompts(scenes), TASK.prompts(other)
    direct = path_patching(layout, clean, corrupt, nodes_of(layout, ["last"]))
    found: dict[str, Any] = {"left out": direct.left_out, "last to the answer": scores(direct)}
    for role, part in (("last", "query"), ("object", "key"), ("object", "value")):
        into = Receivers(tuple(Node(1, head, role) for head in range(4)), part)
        senders = [Node(0, head, role) for head in range(4)]
        found[f"{role} to {part} of block 1"] = scores(path_patching(layout, clean, corrupt, senders, into))
    agreement = {
        steps: edges(model, clean, corrupt, config=EdgesConfig(steps=steps, confirm=1000)).agreement
        for steps in (1, 5, 20)
    }
    return {"paths": found, "edges": agreement}


def scores(effects: Effects) -> dict[str, float]:
    """The paper's score by sender, the most important first."""
    return {str(node): score for node, score in effects.ranked(relative=True)}


def random_share(report: Mapping[str, Any]) -> float:
    """What random groups of the fetchers' size recover of the gain."""
    share: float = (report["groups"][FETCHERS]["random_in_old"] - report["old"]) / (report["new"] - report["old"])
    return share


def judge(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """What the paper claims, and what was measured."""
    own = [one["circuit"]["old"] for one in seeds]
    other = [one["circuit"]["new"] for one in seeds]
    chance = [[sum(one["random"]) / len(one["random"]) for one in row] for row in (own, other)]
    recovered = [one["recovered"] for one in seeds]
    rest = [max(one[name] for name in one if name not in (FETCHERS, "circuit")) for one in recovered]
    randoms = [random_share(one["cmap"]) for one in seeds]
    dcm = [one["dcm"]["B"] for one in seeds]
    fit = [one["screen"]["pearson"] for one in seeds]
    return [
        Claim(
            "A's circuit is faithful in A (at least 0.8), and at least 2.5 times random circuits",
            f"{mean_and_spread([one['faithfulness'] for one in own])} %; random {mean_and_spread(chance[0])} %",
            all(
                one["faithfulness"] >= 0.8 and one["circuit"] >= 2.5 * low
                for one, low in zip(own, chance[0], strict=True)
            ),
        ),
        Claim(
            "A's circuit is faithful in B (at least 0.85), and random circuits are below 0.4",
            f"{mean_and_spread([one['faithfulness'] for one in other])} %; random {mean_and_spread(chance[1])} %",
            all(one["faithfulness"] >= 0.85 for one in other) and all(low < 0.4 for low in chance[1]),
        ),
        Claim(
            "A's circuit in B is more accurate than the whole of A",
            f"{mean_and_spread([one['circuit'] for one in other])} % beside "
            f"{mean_and_spread([one['model'] for one in own])} %",
            all(one["circuit"] > two["model"] for one, two in zip(other, own, strict=True)),
        ),
        Claim(
            "B's value fetchers (heads of block 1 at the last position) in A recover at least 80 % of the gain",
            f"{mean_and_spread([one[FETCHERS] for one in recovered])} %",
            all(one[FETCHERS] >= 0.8 for one in recovered),
        ),
        Claim(
            "every other group of one block and role recovers less",
            f"the best of the others: {mean_and_spread(rest)} %",
            all(one[FETCHERS] > best for one, best in zip(recovered, rest, strict=True)),
        ),
        Claim(
            "the value fetchers carry at least 10 % of the gain more than as many random heads at the last position",
            f"random heads: {mean_and_spread(randoms)} %",
            all(one[FETCHERS] >= low + 0.1 for one, low in zip(recovered, randoms, strict=True)),
        ),
        Claim(
            "heads at the last position carry the object (DCM in B), and no label",
            f"object {mean_and_spread([one['object']['accuracy'] for one in dcm])} % over a floor of "
            f"{mean_and_spread([one['object']['floor'] for one in dcm])} %; "
            f"label {mean_and_spread([one['label']['accuracy'] for one in dcm])} %",
            all(one["object"]["accuracy"] > 0.5 and one["label"]["accuracy"] < 0.15 for one in dcm),
        ),
        Claim(
            "gradients averaged over 5 steps rank edges more like patching than one gradient does (arXiv:2403.17806)",
            "; ".join(f"{one['edges'][1]:.2f} to {one['edges'][5]:.2f}" for one in seeds),
            all(one["edges"][5] > one["edges"][1] for one in seeds),
        ),
        Claim(
            "gradients across models rank nodes as patching does (Pearson at least 0.8)",
            ", ".join(f"{value:.2f}" for value in fit),
            all(value >= 0.8 for value in fit),
        ),
    ]


def draw(seeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: the circuit in both models. Right: the share of the gain that each group carries."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    kinds = ("model", "circuit", "random circuits")
    for index, (model, key) in enumerate((("A", "old"), ("B", "new"))):
        rows = [one["circuit"][key] for one in seeds]
        points = [[one["model"], one["circuit"], sum(one["random"]) / len(one["random"])] for one in rows]
        means = [sum(column) / len(rows) for column in zip(*points, strict=True)]
        places = [place + 0.38 * index for place in range(3)]
        left.bar(places, means, width=0.36, color=f"C{index}", alpha=0.6, label=model)
        for one in points:
            left.scatter(places, one, color="black", s=12, zorder=3)
    left.set_xticks([0.19 + place for place in range(3)], kinds)
    left.set_ylabel("accuracy")
    left.legend(frameon=False)
    names = sorted(seeds[0]["recovered"], key=lambda name: sum(one["recovered"][name] for one in seeds))
    for place, name in enumerate(names):
        values = [100 * one["recovered"][name] for one in seeds]
        right.barh(place, sum(values) / len(values), color="C1", alpha=0.6)
        right.scatter(values, [place] * len(values), color="black", s=12, zorder=3)
    right.set_yticks(range(len(names)), names)
    right.set_xlabel("share of the gain that the group of B recovers in A, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    use_one_thread()
    started = time.monotonic()
    seeds = []
    for seed in options.seeds:
        seeds.append(run_seed(seed))
        print(f"seed {seed} done ({time.monotonic() - started:.0f} s)\n", flush=True)
    draw(seeds, RESULTS / f"{NAME}.svg")
    write_evidence(NAME, PAPER, options.seeds, judge(seeds), {"seeds": seeds}, time.monotonic() - started)


if __name__ == "__main__":
    main()
