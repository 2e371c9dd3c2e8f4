from __future__ import annotations

import pytest

from tests.repair.search_fakes import Fake, Look, always, fixes, labels
from uphold.core.errors import UsageError


def test_a_number_of_trials_is_kept(look: Look) -> None:
    fake = Fake("only", lambda strength: fixes(strength))
    result = look(fake, Fake("other", always(fixes(1))), trials=2)
    assert len(result.trials) == 2
    reasons = {one.label: one.reason for one in result.skipped}
    assert reasons["only (strength 2)"] == "2 trials were asked for"
    grown = look(fake, Fake("other", always(fixes(1))), trials=3)
    assert len(grown.trials) == 3
    assert fake.calls == 2


def test_what_would_not_fit_into_the_time_is_not_started(look: Look) -> None:
    """Two defaults of 60 s leave 60 s of 3 minutes: one variation fits, the next does not."""
    fakes = [Fake("a", always(fixes(1)), seconds=60), Fake("b", always(fixes(2)), seconds=60)]
    result = look(*fakes, trials=None, minutes=3.5, controls=False)
    assert labels(result) == ["a", "b", "b (strength 2)"]
    reasons = {one.label: one.reason for one in result.skipped}
    assert reasons["b (strength 3)"] == "it would take about 60 s, and 30 s are left"
    assert result.seconds == 180


def test_a_trial_is_ended_when_the_time_is_up_and_goes_on_later(look: Look) -> None:
    fakes = [Fake("quick", always(fixes(1)), seconds=10), Fake("slow", always(fixes(3)), seconds=1000, steps=100)]
    result = look(*fakes, trials=None, minutes=1)
    slow = next(trial for trial in result.trials if trial.method == "slow")
    assert (slow.status, slow.seconds) == ("unfinished", 50)
    assert result.winner is not None
    assert result.winner.method == "quick"
    more = look(*fakes, trials=None, minutes=30)
    assert more.winner is not None
    assert more.winner.method == "slow"
    assert fakes[0].calls == 1


def test_nothing_finished_is_an_error_that_says_how_to_go_on(look: Look) -> None:
    with pytest.raises(UsageError, match="type the same command with a larger one"):
        look(Fake("slow", always(fixes(3)), seconds=1000, steps=100), trials=None, minutes=1)
