from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.stages.nets import QUICK, blueprint, drawn, examples
from tests.models.tiny import tiny
from uphold.core.errors import UsageError
from uphold.core.storage import read_json
from uphold.models.fingerprint import module_fingerprint
from uphold.models.stages.data import Classification, Examples, NextToken, correct
from uphold.models.stages.stages import Stages
from uphold.models.stages.training import Training
from uphold.repair.assembly_jobs import train_whole
from uphold.repair.assembly_replace import replace_stage

DATA, TEST = examples(60), examples(90, seed=5)
IDS = torch.randint(4, 40, (12, 9), generator=torch.Generator().manual_seed(0))
TOKENS = Examples(IDS, IDS)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A trained classifier of three stages of two blocks."""
    config = Training(epochs=15, batch_size=16, learning_rate=5e-3)
    return train_whole(drawn((2, 2, 2)), DATA, kind="deployed", out=tmp_path_factory.mktemp("deployed"), config=config)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_is_made_anew_and_all_others_keep_their_bytes(stage: int, deployed: Stages, tmp_path: Path) -> None:
    before = deployed.hashes
    config = Training(epochs=20, batch_size=16, learning_rate=1e-2)

    made = replace_stage(deployed, stage, None, DATA, test=TEST, out=tmp_path, config=config)

    assert deployed.hashes == before
    assert [one == other for one, other in zip(made.stages.hashes, before, strict=True)] == [
        number != stage for number in range(3)
    ]
    assert made.stages.hash(stage) == made.job.result["module"]
    found = read_json(tmp_path / "replacement.json")
    assert (found["before"], found["after"]) == (list(before), list(made.stages.hashes))
    assert found["comparison"]["new"] == made.comparison.new
    right = [correct(one.model, TEST, Classification()) for one in (deployed, made.stages)]
    assert (made.comparison.old, made.comparison.new) == tuple(int(one.sum()) / len(TEST) for one in right)
    assert made.comparison.new > 0.6
    saved = load_file(made.model / "model.safetensors")
    expected = made.stages.model.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in saved.items())
    assert made.patch is None

    again = replace_stage(deployed, stage, None, DATA, test=TEST, out=tmp_path, config=config)
    assert again.stages.digest == made.stages.digest


def test_a_stage_may_be_deeper_and_may_go_on_from_given_weights(deployed: Stages, tmp_path: Path) -> None:
    deeper = replace_stage(deployed, 1, blueprint((2, 4, 2)).stage, DATA, test=TEST, out=tmp_path / "a", config=QUICK)
    assert deeper.stages.starts == (0, 3, 7)
    assert len(deeper.stages.model) == len(deployed.model) + 2

    still = Training(epochs=1, learning_rate=0.0, final_rate=0.0)
    given = replace_stage(deployed, 1, lambda stage: deployed, DATA, test=TEST, out=tmp_path / "b", config=still)
    assert given.stages.digest == deployed.digest
    assert (given.comparison.negative_flips, given.comparison.positive_flips) == (0, 0)


def test_the_change_as_a_patch(deployed: Stages, tmp_path: Path) -> None:
    from uphold.models.patches.apply import apply
    from uphold.models.patches.file import load_patch

    made = replace_stage(deployed, 1, None, DATA, test=TEST, out=tmp_path, config=QUICK, patch=True)

    assert made.patch is not None
    patch = load_patch(made.patch)
    assert {name.partition(".")[0] for name in patch.names} == {"3", "4"}
    assert patch.manifest.paper == "arXiv:2212.04129"
    assert patch.manifest.figures["after"] == {"accuracy": made.comparison.new}
    model = deployed.copied().model
    before = module_fingerprint(model, "")["weights"]
    with apply(model, patch):
        for name, value in made.stages.model.state_dict().items():
            assert torch.allclose(model.state_dict()[name], value, atol=1e-6)
    assert module_fingerprint(model, "")["weights"] == before
    with pytest.raises(UsageError, match=r"a patch needs equal shapes, and blocks\.2\.\S+ of stage 1 is absent now"):
        replace_stage(
            deployed, 1, blueprint((2, 4, 2)).stage, DATA, test=TEST, out=tmp_path / "no", config=QUICK, patch=True
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("cut", ["layers", "embeddings"])
def test_a_layer_of_a_decoder_with_tied_embeddings(cut: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.models.tiny import characters

    model = tiny("llama", num_hidden_layers=3, tie_word_embeddings=True)
    names = {"layers": ["model.layers.1", "model.layers.2"], "embeddings": ["model.layers.0", "model.norm"]}
    stages = Stages.at(model, names[cut])
    made = replace_stage(
        stages,
        1,
        None,
        TOKENS,
        test=TOKENS,
        out=tmp_path,
        objective=NextToken(),
        config=QUICK,
        tokenizer=characters(),
    )

    changed = {
        name
        for name, value in made.stages.model.state_dict().items()
        if not torch.equal(value, model.state_dict()[name])
    }
    layers = {"layers": {"1"}, "embeddings": {"0", "1", "2"}}[cut]
    assert {name.split(".")[2] for name in changed} == layers
    loaded: Any = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, made.stages.model(IDS).logits)
    assert (made.model / "tokenizer.json").is_file()
