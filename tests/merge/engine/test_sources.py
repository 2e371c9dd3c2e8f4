from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import LETTERS, save_tiny_model
from tests.merge.engine.checkpoints import linear
from uphold.core.errors import UsageError
from uphold.merge import merge
from uphold.merge.engine.inputs import Input
from uphold.merge.engine.sources import Permuted, Stored
from uphold.models.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from uphold.models.load import load
from uphold.models.reference import find_model
from uphold.models.vocabulary import token_map

MATRIX = torch.arange(12.0).reshape(4, 3)
OTHER = -torch.arange(6.0).reshape(2, 3)


def stored(value: torch.Tensor) -> Stored:
    infos = {"w": TensorInfo(value.dtype, tuple(value.shape), Path("x"), -1)}
    return Stored(Input("x", Checkpoint(Path("x"), infos, {}, {"w": value})), "w")


def permuted(padding: int = 0) -> Permuted:
    rows = torch.tensor([3, -1, 0, -1, -1])
    others = (
        (stored(OTHER), torch.tensor([-1, 1, -1, 0, -1])),
        (stored(MATRIX), torch.tensor([-1, 2, -1, -1, -1])),
    )
    return Permuted(stored(MATRIX), rows, others, padding)


def test_rows_go_to_their_tokens_and_lacking_ones_are_means_of_others() -> None:
    expected = torch.stack([MATRIX[3], (OTHER[1] + MATRIX[2]) / 2, MATRIX[0], OTHER[0], torch.zeros(3)])
    one = permuted()
    assert one.shape == (5, 3)
    assert one.read(0, 15).reshape(5, 3).equal(expected)


def test_padding_is_the_mean_row() -> None:
    one = permuted(padding=2)
    whole = one.read(0, 21).reshape(7, 3)
    torch.testing.assert_close(whole[5], whole[:5].mean(dim=0))
    assert whole[6].equal(whole[5])


def test_any_piece_is_that_piece_of_the_whole() -> None:
    one = permuted(padding=2)
    whole = one.read(0, 21)
    for start in range(21):
        for stop in range(start + 1, 22):
            assert one.read(start, stop).equal(whole[start:stop])


def test_the_first_rows_of_a_matrix() -> None:
    one = Stored(stored(MATRIX).model, "w", 2)
    assert one.shape == (2, 3)
    assert one.nbytes() == 24
    assert one.read(2, 6).tolist() == [2, 3, 4, 5]


# ---- vocabularies of whole models --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("vocabularies")
    return [
        save_tiny_model(folder / "one", 1, LETTERS),
        save_tiny_model(folder / "two", 2, LETTERS[:0:-1] + "!#"),
    ]


def tables(place: Path) -> tuple[dict[str, int], torch.Tensor, torch.Tensor]:
    checkpoint = open_checkpoint(place)
    ids = token_map(find_model(place))
    return ids, checkpoint.tensor("model.embed_tokens.weight"), checkpoint.tensor("lm_head.weight")


@pytest.mark.parametrize(
    "key", [{"tokenizer_source": "union"}, {"tokenizer": {"source": "union", "pad_to_multiple_of": 64}}]
)
def test_a_union_merges_rows_of_the_same_token(models: list[Path], tmp_path: Path, key: dict[str, Any]) -> None:
    out = tmp_path / "out"
    result = merge(linear(models, [1, 3], **key), out=out, threads=1)
    loaded = load(str(out))
    merged = tables(out)
    one, two = tables(models[0]), tables(models[1])
    ids = merged[0]
    assert ids.keys() == one[0].keys() | two[0].keys()
    for table in (1, 2):
        for token, row in ids.items():
            ours = one[table][one[0][token]] if token in one[0] else two[table][two[0][token]]
            theirs = two[table][two[0][token]] if token in two[0] else one[table][one[0][token]]
            torch.testing.assert_close(merged[table][row], 0.25 * ours + 0.75 * theirs, msg=token)
    size = 64 if "tokenizer" in key else len(ids)
    assert merged[1].shape[0] == loaded.model.config.vocab_size == size
    assert not any("other ids" in text for text in result.warnings)
    assert loaded.model(torch.tensor([[ids["b"], ids["!"]]])).logits.shape[-1] == size


def test_without_a_choice_mixed_up_tokens_are_warned_of(models: list[Path], tmp_path: Path) -> None:
    result = merge(linear(models), out=tmp_path / "out", threads=1)
    assert any("have other ids for" in text and "tokenizer_source: union" in text for text in result.warnings)
    assert load(str(tmp_path / "out")).model.config.vocab_size == 4 + len(LETTERS)


def test_a_choice_of_tokenizer_needs_tokenizers(tmp_path: Path) -> None:
    for name in "ab":
        torch.save({"w": torch.ones(2)}, tmp_path / f"{name}.pt")
    with pytest.raises(UsageError, match="has no tokenizer or no embeddings"):
        merge(linear([tmp_path / "a.pt", tmp_path / "b.pt"], tokenizer_source="union"), out=tmp_path / "out")
