from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from uphold.models.adapter import adapted, base_name, fresh_adapter, is_adapted, save_adapter, trainable_copy
from uphold.models.fingerprint import module_fingerprint
from uphold.models.load import fingerprint_of, load
from uphold.models.weights import LoraSum, bare_copy, lora_factors
from uphold.models.widened import widened


def test_a_fresh_adapter_computes_what_the_base_computes(model_v1: Path) -> None:
    base = load(model_v1)
    ids = base.tokenizer("what is 1+1?", return_tensors="pt")["input_ids"]
    model = fresh_adapter(base, 4, 8, 0.0, seed=0)
    assert torch.equal(model(ids).logits, base.model(ids).logits)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name and "lm_head" not in name for name in trained)


def test_python_users_see_no_warning_of_libraries_among_themselves(model_v1: Path, tmp_path: Path) -> None:
    """The tests' own settings ignore PEFT's use of a deprecated name; nobody else's do."""
    base = load(model_v1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fresh_adapter(base, 4, 8, 0.0, seed=0)
        adapted = load(f"{model_v1}+{save_adapter(model, base, tmp_path / 'adapter', '', {})}")
        widened(adapted, 2, 4.0, 0.0, True, seed=0)
        LoraSum(bare_copy(base), [lora_factors(adapted.model) or {}])


def test_fresh_weights_follow_their_seed_and_leave_the_global_generator_alone(model_v1: Path) -> None:
    base = load(model_v1)
    state = torch.random.get_rng_state()
    hashes = [module_fingerprint(fresh_adapter(base, 4, 8, 0.0, seed), "x")["weights"] for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_saved_adapter_is_an_ordinary_peft_folder(model_v1: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load(model_v1)
    model = fresh_adapter(base, 4, 8, 0.0, seed=0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.fill_(0.01)
    folder = save_adapter(model, base, tmp_path / "adapter", "# card\n", {"task": "t"})
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "uphold.json",
    ]
    assert json.loads((folder / "uphold.json").read_text())["base_weights"] == base.fingerprint["weights"]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_v1, dtype=torch.float32), folder)
    ids = base.tokenizer("abc", return_tensors="pt")["input_ids"]
    assert torch.equal(plain(ids).logits, model(ids).logits)
    saved = adapted(model, base, folder, f"{model_v1}+{folder}")
    assert fingerprint_of(saved) == fingerprint_of(f"{model_v1}+{folder}")
    assert base_name(load(f"{model_v1}+{folder}")) == str(model_v1)


def test_a_trainable_copy_leaves_the_original_alone(model_v1: Path, tmp_path: Path) -> None:
    base = load(model_v1)
    folder = save_adapter(fresh_adapter(base, 4, 8, 0.0, 0), base, tmp_path / "adapter", "", {})
    frozen = load(f"{model_v1}+{folder}")
    before = module_fingerprint(frozen.model, "x")["weights"]
    student = trainable_copy(frozen, 99, 99, 0.0, 0)
    assert {value.shape[0] for name, value in student.named_parameters() if "lora_A" in name} == {4}
    assert all(value.requires_grad == ("lora_" in name) for name, value in student.named_parameters())
    with torch.no_grad():
        for value in student.parameters():
            if value.requires_grad:
                value.add_(1)
    assert module_fingerprint(frozen.model, "x")["weights"] == before
    assert not any(value.requires_grad for value in frozen.model.parameters())


def test_a_model_without_adapter_gets_a_fresh_one(model_v1: Path) -> None:
    base = load(model_v1)
    assert not is_adapted(base)
    assert hasattr(trainable_copy(base, 2, 4, 0.0, 0), "peft_config")
    assert not is_adapted(base)


def test_a_saved_adapter_does_not_depend_on_the_process(model_v1: Path, tmp_path: Path) -> None:
    """PEFT keeps module names in a set, whose order follows the process's hash seed."""
    code = (
        "import sys; from pathlib import Path\n"
        "from uphold.models.adapter import fresh_adapter, save_adapter\n"
        "from uphold.models.fingerprint import files_fingerprint\n"
        "from uphold.models.load import load\n"
        "from uphold.models.reference import find_model\n"
        "base = load(sys.argv[1])\n"
        "folder = save_adapter(fresh_adapter(base, 4, 8, 0.0, 0), base, Path(sys.argv[2]), 'card', {})\n"
        "print(files_fingerprint(find_model(f'{sys.argv[1]}+{folder}'))['adapter'])"
    )
    hashes, configs = [], []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        run = subprocess.run(
            [sys.executable, "-c", code, str(model_v1), str(folder)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        hashes.append(run.stdout.splitlines()[-1])
        configs.append((folder / "adapter_config.json").read_bytes())
    assert hashes[0] == hashes[1]
    assert configs[0] == configs[1]
