from __future__ import annotations

import json

import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from tests.cli.test_main import assert_refused, uphold
from uphold.cli.main import app

RUNNER = CliRunner()


def test_instances_that_a_gate_needs() -> None:
    run = RUNNER.invoke(app, ["power", "--nfr", "0.005", "--limit", "0.02", "--json"])

    needed = json.loads(run.stdout)["instances_needed"]
    # The most flips that `needed` instances allow under the limit, and how likely an NFR of 0.5% stays within them.
    most = max(flips for flips in range(50) if binom.cdf(flips, needed, 0.02) <= 0.05)
    assert binom.cdf(most, needed, 0.005) >= 0.8
    text = RUNNER.invoke(app, ["power", "--nfr", "0.005", "--limit", "0.02"]).stdout
    assert text.startswith(f"{needed:,} instances: an NFR of 0.50% is then shown to keep the limit of 2.00%")


def test_what_can_be_seen() -> None:
    both = RUNNER.invoke(app, ["power", "--nfr", "0.01", "--instances", "100", "--json"])

    values = json.loads(both.stdout)
    assert values["instances_to_see"] == 161  # 1 - 0.99 ** 161 is the first above 0.8
    assert values["smallest_visible_nfr"] == pytest.approx(1 - 0.2 ** (1 / 100), abs=1e-12)
    none = RUNNER.invoke(app, ["power", "--instances", "2", "--floor", "0.9"])
    assert none.stdout.startswith("no NFR at all is seen above a floor of 90.00% with 2 instances")


def test_what_makes_no_sense_is_refused() -> None:
    assert_refused(uphold("power"), "give --nfr")
    assert_refused(uphold("power", "--limit", "0.02"), "--limit needs --nfr")
    assert_refused(uphold("power", "--nfr", "0.03", "--limit", "0.02"), "rate 0.03 and limit 0.02")


def test_shares_and_limits_of_what_is_typed() -> None:
    percent, plain = (uphold("power", "--nfr", a, "--limit", b) for a, b in (("0.5%", "2%"), ("0.005", "0.02")))
    assert percent.stdout == plain.stdout != ""
    assert_refused(
        uphold("power", "--nfr", "1%", "--limit", "2%", "--floor", "1%"), "leave out one of --floor and --li"
    )
    huge = uphold("power", "--instances", "9" * 20)
    assert huge.returncode == 2
    assert "1000000000" in huge.stderr
