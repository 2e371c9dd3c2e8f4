"""One loader for every form of model reference."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.errors import CorruptError, ModelError, TokenizerMismatchError, UsageError
from uphold.core.storage import read_json
from uphold.models.endpoint_reference import is_endpoint, parse_endpoint
from uphold.models.fingerprint import files_fingerprint, module_fingerprint, tokenizer_hash
from uphold.models.reference import ModelFiles, find_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_FACTS = "uphold.json"
"""Side file in an adapter's folder; holds the hash of the base weights it was trained on."""
ATTENTION = "sdpa"
_LIBRARIES = ("uphold", "torch", "transformers", "peft", "tokenizers")


class Loaded(NamedTuple):
    """A model ready to use, with its tokenizer and its fingerprint."""

    model: PreTrainedModel
    """In eval mode; a `peft.PeftModel` where there is an adapter, a `ModelPair` for a pair of models."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    """How its user named it."""
    fingerprint: dict[str, Any]
    """Plain JSON; see `uphold.models.fingerprint`."""
    files: ModelFiles | None
    """Where it was loaded from; None for a model that was handed over loaded."""


ModelLike = Any
"""A reference (`str` or `Path`), a `Loaded`, a `(model, tokenizer)` pair, or a model whose `name_or_path` leads
to its tokenizer."""


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> torch.dtype:
    """float32 on a CPU, bfloat16 on a GPU: the checkpoint's own dtype never decides."""
    import torch

    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def numerics(model: PreTrainedModel | None = None) -> dict[str, str]:
    """Device, dtype and attention kernel: of `model`, or those that `load` chooses."""
    if model is None:
        device, dtype, attention = default_device(), default_dtype(default_device()), ATTENTION
    else:
        device, dtype = model.device.type, model.dtype
        attention = str(getattr(model.config, "_attn_implementation", None))
    return {"device": device, "dtype": str(dtype), "attention": attention}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number."""
    return {name: version(name) for name in _LIBRARIES}


def attention_kernel(files: ModelFiles) -> str:
    """The attention kernel that a model is loaded with: `sdpa`, or `eager` where its architecture has no other.

    A pair has `sdpa` where both of its models have.
    """
    if files.pair is not None:
        kernels = {attention_kernel(one) for one in (files.pair.old, files.pair.new)}
        return ATTENTION if kernels == {ATTENTION} else "eager"
    if files.is_gguf:
        return ATTENTION
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(files.base, local_files_only=True, trust_remote_code=False)
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except (OSError, ValueError, KeyError):
        return ATTENTION
    return ATTENTION if getattr(architecture, "_supports_sdpa", True) else "eager"


def fingerprint_of(model: ModelLike) -> dict[str, Any]:
    """The model part of a run's fingerprint; nothing is loaded where `model` is a reference."""
    if isinstance(model, Loaded):
        return model.fingerprint | numerics(model.model)
    if is_endpoint(model):
        return parse_endpoint(model).fingerprint()
    if isinstance(model, str | Path):
        files = find_model(model)
        return files_fingerprint(files) | numerics() | {"attention": attention_kernel(files)}
    loaded = load(model)
    return loaded.fingerprint | numerics(loaded.model)


def load_module(model: ModelLike) -> Any:
    """The module of a model, where no tokenizer is needed: one that is a module already is given back as it is."""
    from torch import nn

    return model if isinstance(model, nn.Module) else load(model).model


def load(model: ModelLike) -> Loaded:
    """Load a model and its tokenizer; what is loaded already is passed through.

    Weights are read from safetensors or GGUF, as float32 on a CPU and bfloat16 on a GPU, with the `sdpa` kernel.

    Raises:
        ModelError: it cannot be loaded, some weights are missing, or the adapter does not fit the base.
    """
    if isinstance(model, Loaded):
        return model
    if is_endpoint(model):
        raise UsageError(
            f"'{model}' is an endpoint: it can be evaluated and compared, but there are no weights to load"
        )
    if isinstance(model, str | Path):
        return load_files(find_model(model))
    return _from_memory(model)


def check_single(loaded: Loaded) -> None:
    """Refuse a pair of models, where weights are needed.

    Raises:
        UsageError: it is one.
    """
    if "pair" in loaded.fingerprint:
        raise UsageError(
            f"'{loaded.name}' is a pair of models: it can be evaluated and compared, but has no weights of its own; "
            "name one of its two models"
        )


def check_same_tokenizer(old: Loaded, new: Loaded) -> None:
    """Refuse models whose token ids do not mean the same text; an equal vocabulary size is not enough.

    Raises:
        TokenizerMismatchError: the token-id maps differ; the message gives an example.
    """
    ours, theirs = old.tokenizer.get_vocab(), new.tokenizer.get_vocab()
    if ours == theirs:
        return
    token = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise TokenizerMismatchError(
        f"'{old.name}' and '{new.name}' have different tokenizers ({len(ours)} and {len(theirs)} tokens; {token!r} is "
        f"{ours.get(token, 'absent')} and {theirs.get(token, 'absent')}): this needs one token-id map"
    )


def load_files(files: ModelFiles, device_map: str | None = None) -> Loaded:
    """The model, or pair of models, in `files`; see `load`.

    Args:
        files: where it is.
        device_map: see `load_base`.
    """
    fingerprint = files_fingerprint(files)
    if files.pair is not None:
        from uphold.models.pair import load_pair

        return load_pair(files, fingerprint, device_map)
    model, tokenizer = load_base(files, device_map)
    if files.adapter is not None:
        model = attach_adapter(model, files, fingerprint["weights"])
    return Loaded(_ready(model), tokenizer, files.name, fingerprint, files)


def attach_adapter(base: Any, files: ModelFiles, base_weights: str) -> Any:
    """`base`, whose weights have the hash `base_weights`, with the adapter that `files` names.

    Raises:
        ModelError: the adapter was made for another base, or does not fit this one.
        CorruptError: its files cannot be read.
    """
    assert files.adapter is not None
    _check_adapter_base(files.adapter, base_weights, files.name)
    return with_adapter(base, files.adapter, files.name)


def load_base(files: ModelFiles, device_map: str | None = None) -> tuple[Any, Any]:
    """The base model of `files` and its tokenizer, without an adapter.

    Args:
        files: where it is.
        device_map: `auto` and the like spread the layers over all devices (accelerate); None puts the model on one.

    Raises:
        ModelError: it cannot be loaded, or some weights are missing.
        CorruptError: the weights cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    device = default_device()
    place, where = _where(files)
    spread = {} if device_map is None else {"device_map": device_map}
    tokenizer = load_tokenizer(files)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=default_dtype(device),
            attn_implementation=attention_kernel(files),
            output_loading_info=True,
            **where,
            **spread,
        )
    except SafetensorError as error:
        raise CorruptError(f"the weights of '{files.name}' cannot be read ({error}); copy them again") from error
    except Exception as error:
        raise ModelError(f"'{files.name}' cannot be loaded: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelError(
            f"'{files.name}' lacks {len(missing)} weights, the first is {missing[0]}: they would be random numbers"
        )
    if files.is_gguf:
        # transformers has turned every weight into a float, but goes on calling the model quantised and then
        # refuses to save it.
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    return model if spread else model.to(device), tokenizer


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `files`.

    Raises:
        ModelError: there is none that can be read.
    """
    from transformers import AutoTokenizer

    place, where = _where(files)
    try:
        return AutoTokenizer.from_pretrained(place, **where)
    except Exception as error:
        raise ModelError(f"the tokenizer of '{files.name}' cannot be loaded: {_first_line(error)}") from error


def _where(files: ModelFiles) -> tuple[Path, dict[str, Any]]:
    """Folder and options by which transformers finds `files`."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if files.is_gguf:
        return files.base.parent, options | {"gguf_file": files.base.name}
    return files.base, options


def _check_adapter_base(adapter: Path, base_weights: str, name: str) -> None:
    path = adapter / ADAPTER_FACTS
    facts = read_json(path) if path.is_file() else {}
    if facts.get("base_weights") not in (None, base_weights):
        raise ModelError(
            f"'{name}': the adapter {adapter} was trained on another base ('{facts.get('base', 'unknown')}'): "
            "name that one before the +"
        )


def with_adapter(model: Any, adapter: Path, name: str) -> Any:
    """`model`, which is changed, with the adapter in the folder `adapter`; `name` is what messages call it.

    Raises:
        ModelError: the adapter does not fit this model.
        CorruptError: its files cannot be read.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    try:
        if PeftConfig.from_pretrained(str(adapter)).is_prompt_learning:
            raise ModelError(f"'{name}': the adapter {adapter} puts virtual tokens before every prompt: not supported")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"'{name}': the adapter {adapter} does not fit this base ({_first_line(error)}): "
            "name the base it was made for"
        ) from error
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"the adapter {adapter} cannot be read ({_first_line(error)}); copy it again") from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise ModelError(
                f"'{name}': the adapter {adapter} lacks weights for this base: name the base it was made for"
            )
    return adapted


def _from_memory(model: Any) -> Loaded:
    from transformers import AutoTokenizer

    module, tokenizer = model if isinstance(model, tuple) else (model, None)
    if not hasattr(module, "state_dict") or not hasattr(module, "config"):
        raise UsageError(
            f"expected a model reference, a transformers or peft model, or a (model, tokenizer) pair, "
            f"not {type(model).__name__}"
        )
    origin = str(getattr(module.config, "name_or_path", "") or getattr(module.config, "_name_or_path", ""))
    if tokenizer is None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(origin, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                "this loaded model does not say where its tokenizer is: pass the pair (model, tokenizer)"
            ) from error
    fingerprint = module_fingerprint(module, origin or type(module).__name__)
    fingerprint["tokenizer"] = tokenizer_hash(tokenizer)
    return Loaded(_ready(module), tokenizer, fingerprint["name"], fingerprint, None)


def _ready(model: Any) -> Any:
    model.eval()
    return model


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
