import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uphold.core.errors import UsageError
from uphold.explain.wrappers.counter import ART, HIGH, CounterNet, count, pretraining, strings


def occurrences(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (text == 0).sum(1), (text == 1).sum(1)


@given(
    share=st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]),
    q=st.integers(1, 4),
    half=st.integers(4, 8),
    n=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_the_correlation_holds_in_exactly_the_share_that_was_asked_for(
    share: float, q: int, half: int, n: int, seed: int
) -> None:
    text = strings(n, correlated=share, seed=seed, length=2 * half, q=q)
    a, b = occurrences(text)
    assert text.shape == (n, 2 * half)
    assert set(text.unique().tolist()) <= {0, 1, 2}
    assert int((b - a == q).sum()) == round(share * n)


@pytest.mark.parametrize("q", [1, 3])
def test_labels_with_and_without_the_correlation_are_as_far_apart_as_it_says(q: int) -> None:
    n = 40_000
    held, broken = (occurrences(strings(n, correlated=share, seed=3, q=q)) for share in (1.0, 0.0))
    distances = [
        float((one.bincount(minlength=9) - other.bincount(minlength=9)).abs().sum()) / (2 * n)
        for one, other in zip(held, broken, strict=True)
    ]
    assert distances[0] == pytest.approx(q / 8, abs=0.02)
    assert distances[1] == pytest.approx(0, abs=0.02)


def test_places_of_letters_are_random() -> None:
    share = (strings(4000, correlated=1.0, seed=0) == 1).double().mean(0)
    assert float(share.max() - share.min()) < 0.06


def test_labels_never_conflict() -> None:
    a, b = (count(letter, 50, correlated=1.0, seed=0) for letter in "ab")
    assert isinstance(a.inputs, torch.Tensor)
    assert isinstance(b.inputs, torch.Tensor)
    assert (a.inputs[:, 1:] == b.inputs[:, 1:]).all()
    assert (a.inputs[:, 0] != b.inputs[:, 0]).all()
    assert (b.labels - a.labels == 1).all()
    assert a.at is not None
    assert (a.inputs[torch.arange(50), a.at] == ART).all()


def test_pretraining_asks_as_the_prior_says() -> None:
    skill = pretraining(5000, HIGH, seed=0)
    assert isinstance(skill.inputs, torch.Tensor)
    operands = skill.inputs[:, 0] - 3
    assert (operands.bincount(minlength=3) / 5000).tolist() == pytest.approx(HIGH, abs=0.03)
    assert (skill.labels == (skill.inputs[:, 1:-1] == operands[:, None]).sum(1)).all()


def test_the_same_seed_gives_the_same_and_touches_no_global_state() -> None:
    state = torch.get_rng_state()
    one, other = (pretraining(20, HIGH, seed=4).inputs for _ in range(2))
    assert isinstance(one, torch.Tensor)
    assert torch.equal(one, other)  # type: ignore[arg-type]
    assert torch.equal(CounterNet(1).head.weight, CounterNet(1).head.weight)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"length": 7}, {"q": 0}, {"q": 9}, {"correlated": 1.5}])
def test_what_cannot_be_drawn_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="strings need"):
        strings(5, **{"correlated": None, "seed": 0, **options})  # type: ignore[arg-type]


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="no letter"):
        count("d", 5, correlated=None, seed=0)
    with pytest.raises(UsageError, match="prior"):
        pretraining(5, (0.5, 0.6, 0.0), seed=0)
