"""What stands beside the weights of a merge: config, tokenizer, model card, and where everything came from."""

from __future__ import annotations

import copy
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from uphold.core.errors import UsageError
from uphold.core.hashing import sha256_of
from uphold.core.registry import method as registered
from uphold.core.storage import read_json, write_json, write_text
from uphold.merge.engine.inputs import Input
from uphold.merge.engine.names import stacks_of
from uphold.merge.engine.plan import Plan
from uphold.merge.engine.recipe import Recipe
from uphold.models.forward_order import DEPTH_KEYS
from uphold.models.load import load_tokenizer
from uphold.models.vocabulary import save_tokenizer

FACTS = "uphold-merge.json"
RECIPE = "recipe.yaml"
FORMAT = 1
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_PROCESSORS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LIBRARIES = ("uphold", "torch", "numpy", "safetensors")
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def key_of(recipe: Recipe, inputs: Sequence[dict[str, Any]]) -> str:
    """What a merge is called by: the same recipe over the same content, by the same version."""
    contents = [{key: value for key, value in one.items() if key != "model"} for one in inputs]
    names = [one["model"] for one in inputs]
    return sha256_of([FORMAT, version("uphold"), recipe.to_dict(), names, contents])


def finished(out: Path, key: str) -> dict[str, Any] | None:
    """The facts of a merge that `out` holds already, if it is the one called `key`."""
    path = out / FACTS
    facts = read_json(path) if path.is_file() else None
    return facts if isinstance(facts, dict) and facts.get("key") == key else None


def write_companions(plan: Plan, inputs: Sequence[Input], folder: Path) -> None:
    """Config, tokenizer and chat template, from the model that gave the order of the tensors.

    Raises:
        UsageError: the recipe's chat template is none.
    """
    donor = plan.donor.folder
    if donor is None:
        return
    write_json(folder / "config.json", output_config(plan))
    _copy(_PROCESSORS, donor, folder)
    template = _chat_template(plan.recipe.chat_template, inputs)
    if plan.vocabulary is not None:
        save_tokenizer(plan.vocabulary.tokenizer, folder, template)
    elif template is not None:
        assert plan.donor.files is not None
        save_tokenizer(load_tokenizer(plan.donor.files), folder, template)
    else:
        _copy(_COPIED, donor, folder)


def _copy(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def output_config(plan: Plan) -> dict[str, Any]:
    """The donor's config with the result's depth, number of tokens and element type."""
    config = copy.deepcopy(dict(plan.donor.config))
    part = config.get("text_config")
    text = part if isinstance(part, dict) and "vocab_size" not in config else config
    if plan.rows is not None:
        text["vocab_size"] = plan.rows
    if plan.origins:
        before = max(stacks_of(plan.donor.checkpoint.infos).values())
        for key in DEPTH_KEYS:
            if key in text:
                text[key] = len(plan.origins)
        for key, value in text.items():
            if isinstance(value, list) and len(value) == before and "layer" in key:
                text[key] = [_entry(model, key, index, value) for model, index in plan.origins]
    dtype = plan.recipe.out_dtype or plan.recipe.dtype
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    return config


def _entry(model: Input, key: str, index: int, fallback: list[Any]) -> Any:
    own = model.text_config(key)
    values = own if isinstance(own, list) and index < len(own) else fallback
    return values[min(index, len(values) - 1)]


def _chat_template(wanted: str | None, inputs: Sequence[Input]) -> str | None:
    if wanted is None:
        return None
    if wanted == "chatml":
        return _CHATML
    if wanted != "auto":
        if "{" not in wanted:
            raise UsageError(f"the chat template '{wanted}' is not known; expected auto, chatml, or the Jinja text")
        return wanted
    found: Counter[str] = Counter()
    for one in inputs:
        if one.files is not None and isinstance(template := load_tokenizer(one.files).chat_template, str):
            found[template] += 1
    return found.most_common(1)[0][0] if found else None


def provenance(
    plan: Plan, inputs: list[dict[str, Any]], weights: str, warnings: Sequence[str], shards: int
) -> dict[str, Any]:
    """The content of `uphold-merge.json`."""
    return {
        "format": FORMAT,
        "key": key_of(plan.recipe, inputs),
        "method": plan.recipe.merge_method,
        "paper": registered("merge", plan.recipe.merge_method).paper,
        "recipe": plan.recipe.to_dict(),
        "seed": plan.recipe.random_seed,
        "inputs": inputs,
        "weights": weights,
        "tensors": len(plan.tensors),
        "merged": sum(one.settings is not None for one in plan.tensors),
        "bytes": sum(one.elements * one.dtype.itemsize for one in plan.tensors),
        "shards": shards,
        "warnings": list(warnings),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def write_facts(plan: Plan, facts: dict[str, Any], folder: Path) -> None:
    """Provenance, recipe and model card."""
    write_json(folder / FACTS, facts)
    write_text(folder / RECIPE, recipe_yaml(plan.recipe))
    write_text(folder / "README.md", _card(plan, facts))


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe as YAML."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def _card(plan: Plan, facts: dict[str, Any]) -> str:
    recipe = plan.recipe
    references = recipe.references()
    hub = [name.partition("+")[0].partition("@")[0] for name in references if not Path(name).exists()]
    header: dict[str, Any] = {
        "base_model": [name for name in dict.fromkeys(hub) if _HUB_ID.fullmatch(name)],
        "base_model_relation": "merge",
        "library_name": "transformers" if plan.donor.folder is not None else "pytorch",
        "tags": ["merge", "uphold", recipe.merge_method],
    }
    if not header["base_model"]:
        del header["base_model"]
    names = [f"- `{name}`{' (base)' if name == recipe.base_model else ''}" for name in references]
    paper = f" ({facts['paper']})" if facts["paper"] else ""
    fence = "`" * (3 + max((len(run) for run in re.findall("`+", recipe_yaml(recipe))), default=0))
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=True, allow_unicode=True)}---",
            f"# {recipe.name or 'Merged model'}",
            "",
            f"Made from {len(references)} model{'' if len(references) == 1 else 's'} by `{recipe.merge_method}`{paper} "
            f"with Uphold {facts['versions']['uphold']}.",
            "",
            "## Models",
            "",
            *names,
            "",
            "## Recipe",
            "",
            f"{fence}yaml\n{recipe_yaml(recipe)}{fence}",
            "",
            f"Hashes of the inputs and of the result are in `{FACTS}`; its weights are `{facts['weights'][:16]}`.",
            "",
        ]
    )
