from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LETTERS, save_tiny_model
from uphold.core.errors import ModelError, UsageError
from uphold.models.reference import find_model
from uphold.models.vocabulary import Member, Wish, build_vocabulary, save_tokenizer, token_map

COUNT = 4 + len(LETTERS)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Member]:
    """`one` knows a to z, `two` the same letters in another order without a, and two more."""
    folder = tmp_path_factory.mktemp("vocabularies")
    letters = {"one": LETTERS, "two": LETTERS[:0:-1] + "!#"}
    return {
        name: Member(find_model(save_tiny_model(folder / name, 1, text)), 4 + len(text))
        for name, text in letters.items()
    }


def test_a_union_has_the_bases_tokens_first_and_then_the_others(members: dict[str, Member]) -> None:
    found = build_vocabulary(members, "one")
    ids = found.tokenizer.get_vocab()
    ours, theirs = (token_map(member.files) for member in members.values())
    assert found.size == found.tokens == COUNT + 2
    assert {token: ids[token] for token in ours} == ours
    assert (ids["!"], ids["#"]) == (COUNT, COUNT + 1)
    assert found.own["one"].tolist() == [*range(COUNT), -1, -1]
    assert found.own["two"].tolist() == [theirs.get(token, -1) for token in sorted(ids, key=lambda one: ids[one])]
    assert found.own["two"][ids["a"]] == -1
    assert found.orphans() == []


def test_a_lacking_row_comes_from_the_base_or_from_whoever_has_it(members: dict[str, Member]) -> None:
    found = build_vocabulary(members, "one")
    ids = found.tokenizer.get_vocab()
    others = found.others(["one", "two"])
    assert others["one"][ids["a"]] == ids["a"]
    assert others["two"][ids["a"]] == -1
    assert others["two"][ids["b"]] == -1, "the base has it, and goes before"
    assert others["two"][ids["!"]] >= 0


def test_the_bases_tokenizer_or_another_models(members: dict[str, Member]) -> None:
    assert build_vocabulary(members, "one", "base").tokens == COUNT
    found = build_vocabulary(members, "one", "two")
    assert found.tokenizer.get_vocab() == token_map(members["two"].files)
    assert found.own["one"][found.tokenizer.get_vocab()["!"]] == -1


def test_rows_are_padded(members: dict[str, Member]) -> None:
    found = build_vocabulary(members, "one", multiple=16)
    assert (found.tokens, found.padding, found.size % 16) == (COUNT + 2, 16 - (COUNT + 2) % 16, 0)
    assert build_vocabulary(members, "one", "base", multiple=1).padding == 0


def test_wishes_go_before_the_rules(members: dict[str, Member]) -> None:
    wishes = {
        "<new>": Wish("one", "a"),
        "<zero>": Wish(zero=True),
        "b": Wish("two", force=True),
        "c": Wish(force=True),
        "<id>": Wish("two", 7),
    }
    found = build_vocabulary(members, "one", wishes=wishes)
    ids = found.tokenizer.get_vocab()
    others = found.others(["one", "two"])
    assert others["one"][ids["<new>"]] == ids["a"]
    assert [others[name][ids["<zero>"]] for name in ("one", "two")] == [-1, -1]
    assert found.own["one"][ids["b"]] == -1
    assert others["one"][ids["b"]] == -1
    assert others["two"][ids["b"]] == token_map(members["two"].files)["b"]
    assert found.own["two"][ids["c"]] == -1
    assert others["one"][ids["c"]] == ids["c"]
    assert others["two"][ids["<id>"]] == 7
    assert found.orphans() == []
    lent = found.others(["one"])
    assert lent["two"][ids["b"]] >= 0, "a model that lends a row is named although it is not merged here"


def test_wishes_that_cannot_be_granted(members: dict[str, Member]) -> None:
    with pytest.raises(UsageError, match="unknown model for the token 'x' 'tow': did you mean 'two'"):
        build_vocabulary(members, "one", wishes={"x": Wish("tow", "a")})
    with pytest.raises(ModelError, match="the token 'a' is not one of 'two'"):
        build_vocabulary(members, "one", wishes={"<x>": Wish("two", "a")})
    with pytest.raises(UsageError, match="beyond its"):
        build_vocabulary(members, "one", wishes={"<x>": Wish("two", 1000)})


def test_token_ids_beyond_the_rows_do_not_count(members: dict[str, Member]) -> None:
    short = {"one": members["one"], "two": Member(members["two"].files, members["two"].rows - 1)}
    found = build_vocabulary(short, "one")
    assert "#" not in found.tokenizer.get_vocab()
    alone = build_vocabulary({"one": Member(members["one"].files, COUNT - 1)}, "one", "base")
    assert alone.orphans() == ["."]


def test_a_saved_tokenizer_has_the_ids(members: dict[str, Member], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    found = build_vocabulary(members, "one")
    save_tokenizer(found.tokenizer, tmp_path, "{{ messages }}")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == found.tokenizer.get_vocab()
    assert loaded.chat_template == "{{ messages }}"
    assert loaded("b!").input_ids == [loaded.get_vocab()["b"], loaded.get_vocab()["!"]]
