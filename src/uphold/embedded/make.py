"""Make the embedded pair: two small base language models, v1 and v2, from generated reasoning-gym text.

    python -m uphold.embedded.make [--out FOLDER]

Both are one Llama architecture with one character tokenizer. v1 reads a narrow mix. v2 is v1 read further: on more
text of a broader mix, as updates of real models are. No instance of the task `demo`, in any split, occurs in the
text of either.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from uphold.core.storage import atomic_folder, write_json
from uphold.tasks.base import SPLITS, Instance
from uphold.tasks.generated import GeneratedConfig, draw_instances
from uphold.tasks.load import load_task

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-*/=>,:;.? "
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PROMPT_WEIGHT = 0.1
"""Loss weight of a prompt's token, where an answer's token weighs 1: prompts are random and cannot be learned."""
BATCH = 128
CONTEXT = 64

SOURCES: Mapping[str, tuple[str, GeneratedConfig]] = {
    "rotten": ("rotten_oranges", GeneratedConfig(compact=True, pattern=r"(?s)orange:\n(.*)", prompt="R{1}>",
                                                 dataset={"min_n": 4, "max_n": 4})),
    "island": ("largest_island", GeneratedConfig(compact=True, pattern=r"(?s)grid:\n([01 \n]*)", prompt="I{1}>",
                                                 dataset={"min_rows": 4, "max_rows": 4, "min_cols": 4, "max_cols": 4,
                                                          "max_island_size": 6})),
    "alternation": ("binary_alternation", GeneratedConfig(pattern=r"alternating: (\d+)", prompt="A{1}>",
                                                          dataset={"min_n": 10, "max_n": 15})),
    "gcd": ("gcd", GeneratedConfig(compact=True, pattern=r"numbers: ([\d, ]+)", prompt="G{1}>",
                                   dataset={"max_value": 99})),
    "primes": ("count_primes", GeneratedConfig(pattern=r"between (\d+) and (\d+)", prompt="P{1},{2}>",
                                               dataset={"max_n": 99})),
    "sum": ("chain_sum", GeneratedConfig(compact=True, pattern=r"problem: (.*) =", prompt="{1}>",
                                         dataset={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2})),
}  # fmt: skip
"""What the models read: reasoning-gym datasets, each in a compact form of its own."""


@dataclass(frozen=True)
class Reading:
    """What one model reads, and how fast it learns."""

    seed: int
    steps: int
    draws: int
    """Instances drawn per dataset, before the demo task's own are dropped; repeats stay."""
    mix: Mapping[str, float]
    """Share of batches per dataset."""
    rate: float
    """Peak learning rate."""
    warmup: int = 30


READINGS = {
    "v1": Reading(seed=1, steps=1000, draws=30_000, mix={"rotten": 0.9, "island": 0.1}, rate=3e-3),
    "v2": Reading(
        seed=2,
        steps=2400,
        draws=60_000,
        mix={"rotten": 0.6, "island": 0.08, "alternation": 0.08, "gcd": 0.08, "primes": 0.08, "sum": 0.08},
        rate=2e-3,
    ),
}


def build_tokenizer() -> Any:
    """One token per character, `<s>` in front."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: Any, seed: int) -> Any:
    """A freshly drawn model of the pair's architecture."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **ends,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=4, **ends)
    return model


def read(model: Any, tokenizer: Any, reading: Reading, label: str) -> Any:
    """Train `model` in place on what `reading` lists; every batch holds one dataset, chosen by the mix."""
    pools = {}
    for position, name in enumerate(reading.mix):
        kept = readable(SOURCES[name], size=reading.draws, seed=1000 * reading.seed + position)
        print(f"{label}: {name}, {len(kept)} of {reading.draws} instances", flush=True)
        pools[name] = _collate(kept, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=reading.rate, weight_decay=0.01, betas=(0.9, 0.98))
    chooser = random.Random(reading.seed)
    sampler = torch.Generator().manual_seed(reading.seed)
    model.train()
    for step in range(reading.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, reading)
        ids, weight = pools[chooser.choices(list(reading.mix), list(reading.mix.values()))[0]]
        rows = torch.randint(len(ids), (BATCH,), generator=sampler)
        targets, weights = ids[rows][:, 1:].flatten(), weight[rows][:, 1:].flatten()
        logits = model(input_ids=ids[rows], use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = (functional.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 199:
            print(f"{label}: step {step + 1}/{reading.steps}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def readable(source: tuple[str, GeneratedConfig], size: int, seed: int) -> list[Instance]:
    """`size` drawn instances without those of the demo task, whatever their split; repeats stay."""
    excluded = {instance.prompt for split in SPLITS for instance in load_task("demo").instances(split)}
    drawn = draw_instances(*source, size=size, seed=seed)
    return [instance for instance in drawn if instance.prompt not in excluded]


def _collate(instances: list[Instance], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, and each token's weight as a target; padding weighs nothing."""
    rows, weights = [], []
    for instance in instances:
        head = tokenizer(instance.prompt)["input_ids"]
        tail = [*tokenizer(instance.target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append(torch.tensor(head + tail))
        weights.append(torch.tensor([PROMPT_WEIGHT] * len(head) + [1.0] * len(tail)))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id), pad(weights, batch_first=True)


def _learning_rate(step: int, reading: Reading) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / reading.steps))
    return reading.rate * min(1.0, (step + 1) / reading.warmup) * (0.05 + 0.95 * cosine)


def make(out: Path) -> None:
    """Train and write `out/v1` and `out/v2`, each with a note of how it was made."""
    # One thread: sums come out in one order, whatever the machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, READINGS["v1"].seed)
    for label, reading in READINGS.items():
        started = time.monotonic()
        read(model, tokenizer, reading, label)
        seconds = round(time.monotonic() - started)
        with atomic_folder(out / label) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_json(folder / "making.json", {**asdict(reading), "mix": dict(reading.mix), "seconds": seconds})
        print(f"{label}: {model.num_parameters()} parameters, {seconds} s", flush=True)
    torch.set_num_threads(threads)


def main() -> None:
    """Make the pair from the command line."""
    parser = argparse.ArgumentParser(description="make the embedded pair")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="gets v1/ and v2/")
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
