from __future__ import annotations

import copy
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from tests.models.test_load import write_gguf
from tests.models.tiny import byte_pairs, characters, tiny
from uphold.core.errors import ModelError
from uphold.models import pool as module
from uphold.models.adapter import fresh_adapter, save_adapter
from uphold.models.decoding import Sampling
from uphold.models.engine import EndpointEngine, LocalEngine, Meter
from uphold.models.load import Loaded, load
from uphold.models.pool import ModelPool

IDS = torch.tensor([[5, 9, 13, 17, 21, 25]])
QUESTIONS = [[("a:", "b"), ("a:", "cd"), ("a:", "ce")], [("what?", "x"), ("what?", "y")]]
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
KINDS = {
    "lora": LORA,
    "dora": LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "own head": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "own tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 9], task_type="CAUSAL_LM"),
    # Its first step takes the principal components out of the base's weights.
    "pissa": LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"),
}
VIRTUAL = {
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


def adapter(model: Path, folder: Path, kind: str, seed: int) -> str:
    """A reference to `model` with a random adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(copy.deepcopy(load(model).model), copy.deepcopy((KINDS | VIRTUAL)[kind]))
        with torch.no_grad():
            for value in adapted.parameters():
                if value.requires_grad:
                    value.add_(0.3 * torch.randn_like(value))
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return f"{model}+{folder}"


@pytest.fixture(scope="module")
def adapters(model_v1: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {kind: adapter(model_v1, folder / kind.replace(" ", "-"), kind, seed) for seed, kind in enumerate(KINDS)}
    return made | {"other lora": adapter(model_v1, folder / "other", "lora", 99)}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The bases that are loaded, as they are."""
    names: list[str] = []
    plain = module.load_base

    def counted(files: Any, *rest: Any) -> Any:
        names.append(files.base.name)
        return plain(files, *rest)

    monkeypatch.setattr(module, "load_base", counted)
    return names  # type: ignore[return-value]


def logits(loaded: Loaded) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(loaded.model(IDS).logits)


def parameters(loaded: Loaded) -> dict[str, torch.nn.Parameter]:
    """The base's own parameters under their own names."""
    base: Any = loaded.model.get_base_model() if hasattr(loaded.model, "peft_config") else loaded.model
    return {name.replace(".base_layer", ""): value for name, value in base.named_parameters() if "lora_" not in name}


# ---- one base in memory ----


def test_adapters_of_one_base_share_its_parameters(model_v1: Path, adapters: dict[str, str], loads: list[str]) -> None:
    pool = ModelPool()
    base = parameters(pool.load(model_v1))
    for reference in (adapters["lora"], adapters["other lora"], str(model_v1), adapters["lora"]):
        own = parameters(pool.load(reference))
        assert own.keys() == base.keys()
        assert all(own[name] is base[name] for name in base)
    assert loads == ["v1"]


def test_the_same_model_again_is_not_loaded_again(model_v1: Path, tmp_path: Path, loads: list[str]) -> None:
    copied = shutil.copytree(model_v1, tmp_path / "copy")
    pool = ModelPool()

    first, again = pool.load(model_v1), pool.load(copied)

    assert again.model is first.model
    assert (first.name, again.name) == (str(model_v1), str(copied))
    assert loads == ["v1"]


def test_another_base_releases_the_first(
    model_v1: Path, model_v2: Path, adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ModelPool()
    for reference in (str(model_v1), adapters["lora"]):
        kept = weakref.ref(pool.load(reference).model)
        gone: list[bool] = []
        plain = module.load_base
        with monkeypatch.context() as patch:
            patch.setattr(module, "load_base", lambda *rest: gone.append(kept() is None) or plain(*rest))  # noqa: B023
            pool.load(model_v2)
        assert gone == [True]  # before the second was loaded: never two in memory


def test_nothing_is_loaded_before_it_is_asked_for(loads: list[str]) -> None:
    ModelPool()

    assert loads == []


# ---- the same numbers as from a fresh load ----


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_adapter_the_base_is_what_it_was(model_v1: Path, adapters: dict[str, str], kind: str) -> None:
    fresh = {reference: logits(load(reference)) for reference in (str(model_v1), adapters[kind], adapters["lora"])}
    assert not torch.equal(fresh[adapters[kind]], fresh[str(model_v1)])
    pool = ModelPool()

    for reference in (str(model_v1), adapters[kind], str(model_v1), adapters["lora"], adapters[kind], str(model_v1)):
        loaded = pool.load(reference)
        assert torch.equal(logits(loaded), fresh[reference]), reference
        assert not loaded.model.training


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_before_a_prompt_are_refused(model_v1: Path, tmp_path: Path, kind: str) -> None:
    """Such an adapter moves all positions, or hides behind a cache of its own: what is read is not what was asked."""
    pool = ModelPool()

    with pytest.raises(ModelError, match="virtual tokens"):
        pool.load(adapter(model_v1, tmp_path / "adapter", kind, 5))

    assert torch.equal(logits(pool.load(model_v1)), logits(load(model_v1)))


def test_a_base_that_an_adapter_came_off_has_the_fresh_weights(model_v1: Path, adapters: dict[str, str]) -> None:
    pool = ModelPool()
    for kind in ("lora", "dora", "ia3"):
        pool.load(adapters[kind])
    state, fresh = pool.load(model_v1).model.state_dict(), load(model_v1).model.state_dict()

    assert state.keys() == fresh.keys()
    assert all(torch.equal(state[name], fresh[name]) for name in fresh)


def test_engines_of_a_pool_give_the_numbers_of_fresh_ones(
    model_v1: Path, model_v2: Path, adapters: dict[str, str]
) -> None:
    pool, sampling = ModelPool(), Sampling(6)
    for reference in (str(model_v1), adapters["lora"], str(model_v2), adapters["other lora"], str(model_v1)):
        engine, fresh = pool.engine(reference, 128), LocalEngine(load(reference), 128)
        assert engine.name == reference
        assert engine.score(QUESTIONS) == fresh.score(QUESTIONS)
        assert engine.write(["a:", "b"], sampling, ["a:", "b"]) == fresh.write(["a:", "b"], sampling, ["a:", "b"])


def test_what_a_pool_lends_says_what_it_is(model_v1: Path, adapters: dict[str, str]) -> None:
    pool = ModelPool()
    for reference in (str(model_v1), adapters["lora"]):
        pooled, alone = pool.load(reference), load(reference)
        assert (pooled.name, pooled.fingerprint, pooled.files) == (alone.name, alone.fingerprint, alone.files)


# ---- tokenizers ----


def test_models_with_one_tokenizer_share_what_was_tokenised(model_v1: Path, model_v2: Path) -> None:
    pool = ModelPool()

    first, second = pool.engine(model_v1, 64), pool.engine(model_v2, 64)

    assert first._likelihood.encoder is second._likelihood.encoder  # type: ignore[attr-defined]


def test_models_in_memory_whose_tokenizers_differ_in_more_than_ids_do_not_share() -> None:
    """One puts a special token before every text, the other does not."""
    plain, starting = (load((tiny("llama", vocab_size=360), byte_pairs(start))) for start in (False, True))
    pool = ModelPool()

    engines: Any = [pool.engine(loaded, 64) for loaded in (plain, starting)]

    assert [engine._likelihood.encoder.prompts(["the"])[0][0] == 1 for engine in engines] == [False, True]


def test_gguf_files_have_tokenizers_of_their_own(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf(gguf, tmp_path / "tiny.gguf")
    pool = ModelPool()
    first: Any = pool.engine(path, 64)
    other = load((tiny("llama"), characters()))
    # As another file has it: one word stands for the tokenizer of every GGUF file.
    second: Any = pool.engine(other._replace(fingerprint=other.fingerprint | {"tokenizer": "gguf"}), 64)

    assert first._likelihood.encoder.tokenizer.get_vocab() != characters().get_vocab()
    assert second._likelihood.encoder.tokenizer.get_vocab() == characters().get_vocab()


# ---- what is lent besides ----


def test_models_in_memory_are_passed_through(model_v1: Path, loads: list[str]) -> None:
    loaded = load(model_v1)
    pool = ModelPool()

    assert pool.load(loaded) is loaded
    assert pool.load((loaded.model, loaded.tokenizer)).model is loaded.model
    assert pool.engine(loaded, 64).name == loaded.name
    assert loads == []


def test_endpoints_are_asked_not_loaded() -> None:
    assert isinstance(ModelPool().engine("http://localhost:9/v1#some-model", 64, Meter()), EndpointEngine)


def test_a_refused_adapter_leaves_the_pool_usable(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    other = load(model_v2)
    folder = save_adapter(fresh_adapter(other, 4, 8, 0.0, 0), other, tmp_path / "adapter", "card", {})
    pool = ModelPool()
    pool.load(model_v1)

    with pytest.raises(ModelError, match="trained on another base"):
        pool.load(f"{model_v1}+{folder}")

    assert torch.equal(logits(pool.load(model_v1)), logits(load(model_v1)))
    assert torch.equal(logits(pool.load(f"{model_v2}+{folder}")), logits(other))


def test_a_model_that_cannot_be_loaded_leaves_the_pool_usable(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model_v2, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "no-such-model"}')
    pool = ModelPool()
    pool.load(model_v1)

    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be loaded"):
            pool.load(broken)

    assert torch.equal(logits(pool.load(model_v1)), logits(load(model_v1)))


def test_layers_may_be_spread_over_devices(model_v1: Path) -> None:
    pytest.importorskip("accelerate")

    assert torch.equal(logits(ModelPool("auto").load(model_v1)), logits(load(model_v1)))


@pytest.mark.parametrize("kind", ["gemma2", "mamba", "bloom"])
def test_a_model_without_the_usual_kernel_is_loaded_with_its_own(kind: str, tmp_path: Path) -> None:
    """Not every architecture has the sdpa kernel; some have no attention at all."""
    tiny(kind, "eager").save_pretrained(tmp_path)
    characters().save_pretrained(tmp_path)

    assert torch.isfinite(logits(ModelPool().load(tmp_path))).all()
