from __future__ import annotations

from pathlib import Path

import pytest

from uphold.core.errors import DataError, UsageError
from uphold.repair import AdaptConfig, MuscleConfig
from uphold.repair.recipe import configure, recipe_for, recipe_names
from uphold.tasks.load import load_task


def test_the_papers_numbers() -> None:
    """Table 8 of the paper."""
    for config in (configure(AdaptConfig(), "adapt", "paper"), configure(MuscleConfig(), "muscle", "paper")):
        assert (config.rank, config.alpha, config.dropout) == (128, 256, 0.0)
        assert (config.learning_rate, config.warmup_steps, config.weight_decay, config.epochs) == (1e-4, 500, 0.0, 10)
        assert config.tokens == "all"
    assert configure(MuscleConfig(), "muscle", "paper").temperature == 2.0
    assert configure(MuscleConfig(), "muscle", "paper").mask == "student-wrong"


def test_every_shipped_recipe_fits_its_configs() -> None:
    for name in recipe_names():
        assert configure(AdaptConfig(), "adapt", name).epochs > 0
        assert configure(MuscleConfig(), "muscle", name).epochs > 0


def test_a_task_with_a_recipe_of_its_own_uses_it(task_file: Path) -> None:
    assert recipe_for(load_task("demo")) == "demo"
    assert recipe_for(load_task(task_file)) == "paper"


def test_overrides_win_and_none_is_not_given() -> None:
    config = configure(AdaptConfig(), "adapt", "paper", {"rank": 4, "epochs": None})
    assert (config.rank, config.epochs) == (4, 10)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="weight_decay of 'muscle' must be a finite number"):
        configure(MuscleConfig(), "muscle", "paper", {"weight_decay": value})
    with pytest.raises(UsageError, match="temperature must be above 0 and finite"):
        MuscleConfig(temperature=float(value))


def test_a_recipe_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the recipe file .*shipped recipes: demo, paper"):
        configure(AdaptConfig(), "adapt", tmp_path / "nope.yaml")


def test_a_recipe_file_and_what_can_be_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("adapt: {rank: 8}\n")
    assert configure(AdaptConfig(), "adapt", path).rank == 8
    assert configure(MuscleConfig(), "muscle", path) == MuscleConfig()
    path.write_text("adapt: {rnak: 8}\n")
    with pytest.raises(UsageError, match="did you mean 'rank'"):
        configure(AdaptConfig(), "adapt", path)
    path.write_text("adapt: {rank: many}\n")
    with pytest.raises(DataError, match="rank: input should be a valid integer"):
        configure(AdaptConfig(), "adapt", path)
    path.write_text("repair: {epochs: 3, temperature: 5.0}\nmuscle: {epochs: 4, mask: old-only}\n")
    shared = configure(MuscleConfig(), "muscle", path)
    assert (shared.epochs, shared.temperature, shared.mask) == (4, 5.0, "old-only")
    assert configure(AdaptConfig(), "adapt", path) == AdaptConfig()
    path.write_text("repair: {epoch: 3}\n")
    with pytest.raises(UsageError, match=r"option of 'repair' .* did you mean 'epochs'"):
        configure(MuscleConfig(), "muscle", path)
    path.write_text("- a list\n")
    with pytest.raises(UsageError, match="must be a mapping"):
        configure(AdaptConfig(), "adapt", path)
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        configure(AdaptConfig(), "adapt", "papr")
    with pytest.raises(DataError, match="cannot read"):
        configure(AdaptConfig(), "adapt", tmp_path / "none.yaml")
