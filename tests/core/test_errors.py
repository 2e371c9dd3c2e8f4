from __future__ import annotations

import pytest

from uphold.core import errors


def test_everything_is_an_uphold_error() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not errors.UpholdError
    ]

    assert len(kinds) == 8
    assert all(issubclass(kind, errors.UpholdError) for kind in kinds)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.DataError, 2),
        (errors.CorruptError, 2),
        (errors.ModelError, 2),
        (errors.StorageError, 2),
        (errors.NotComparableError, 4),
    ],
)
def test_exit_codes(kind: type[errors.UpholdError], code: int) -> None:
    assert kind("no").exit_code == code


def test_empty_and_corrupt_data_are_data_errors() -> None:
    assert issubclass(errors.EmptyError, errors.DataError)
    assert issubclass(errors.CorruptError, errors.DataError)
    assert issubclass(errors.TokenizerMismatchError, errors.ModelError)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    error = errors.unknown_name("scorer", "rogue1.v1", ["exact.v1", "rouge1.v1"])

    assert isinstance(error, errors.UsageError)
    assert str(error) == "unknown scorer 'rogue1.v1': did you mean 'rouge1.v1'?"


def test_a_name_like_no_other_gets_the_list() -> None:
    error = errors.unknown_name("split", "zzz", ["train", "test"], "See the manual.")

    assert str(error) == "unknown split 'zzz': known: test, train. See the manual."
    assert str(errors.unknown_name("split", "zzz", [])) == "unknown split 'zzz': known: none."
    many = str(errors.unknown_name("tag", "zzz", [f"{n:04}" for n in range(1021)]))
    assert many.endswith(", 0018, 0019 and 1,001 more.")
