"""What reproduction 06 claims, judged on its figures of all seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import digits
from evidence import Claim

from uphold.repair.signatures import UNRELATED

CLEAN, BUDGET = "clean", 0.02
STRONG: tuple[digits.Corruption, ...] = ("blur", "contrast")
QUANTISERS = ("linear:256", "linear:16", "linear:8", "linear:4", "int8", "int4", "log")


def judge(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The claims, each over all seeds."""
    return [*_patching(seeds), *_transferred(seeds), *_used(seeds), *_files(seeds)]


def _gains(seeds: Sequence[Mapping[str, Any]], kinds: Sequence[str], arm: str) -> tuple[list[float], list[float]]:
    """Change of RA and of TA against the standard network, in points."""
    pairs = [
        (one[kind][arm][kind] - one["standard"][kind], one[kind][arm][CLEAN] - one["standard"][CLEAN])
        for one in seeds
        for kind in kinds
    ]
    return [100 * robust for robust, _ in pairs], [100 * clean for _, clean in pairs]


def _text(points: Sequence[float]) -> str:
    return f"{sum(points) / len(points):+.1f} ({min(points):+.1f} to {max(points):+.1f})"


def _patching(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    claims = []
    for kinds, least in ((STRONG, 3.0), (("noise",), 3.0)):
        robust, clean = _gains(seeds, kinds, "3 layers")
        claims.append(
            Claim(
                f"3 of 6 layers, {' and '.join(kinds)}: RA at least +3 points, TA at most -12",
                f"RA {_text(robust)}, TA {_text(clean)}",
                min(robust) >= least and min(clean) >= -12,
            )
        )
    ratios = [one[kind]["sizes"][0] / one[kind]["sizes"][-1] for one in seeds for kind in digits.CORRUPTIONS]
    steps = [
        second <= first
        for one in seeds
        for kind in digits.CORRUPTIONS
        for first, second in zip(one[kind]["sizes"], one[kind]["sizes"][1:], strict=False)
    ]
    claims.append(
        Claim(
            "signatures lie in shallow layers: |R|/|w| of the first beyond the last",
            f"{min(ratios):.1f} to {max(ratios):.1f} times; {sum(steps)} of {len(steps)} steps fall",
            min(ratios) > 1,
        )
    )
    halves, fulls = (_gains_at(seeds, strength) for strength in ("0.5", "1.0"))
    kept = [100 * (half[0] / full[0]) for half, full in zip(halves, fulls, strict=True)]
    cost = [half[1] - full[1] for half, full in zip(halves, fulls, strict=True)]
    claims.append(
        Claim(
            "the strength is a dial: 0.5 has most of the gain at less cost (6 layers, blur and contrast)",
            f"{sum(kept) / len(kept):.0f}% of the gain ({min(kept):.0f} to {max(kept):.0f}), TA {_text(cost)} to 1",
            min(kept) > 50 and sum(cost) >= 0,
        )
    )
    for start in seeds[0]["projection"]:
        pairs = [one["projection"][start][kind].values() for one in seeds for kind in digits.CORRUPTIONS]
        clean = [100 * (ours[CLEAN] - plain[CLEAN]) for ours, plain in pairs]
        robust = [
            100
            * (one["projection"][start][kind]["signature"][kind] - one["projection"][start][kind]["difference"][kind])
            for one in seeds
            for kind in digits.CORRUPTIONS
        ]
        claims.append(
            Claim(
                f"the projection protects TA against the plain difference ({start})",
                f"TA {_text(clean)}, RA {_text(robust)}",
                sum(clean) / len(clean) >= 0.5,
            )
        )
    return claims


def _gains_at(seeds: Sequence[Mapping[str, Any]], strength: str) -> list[tuple[float, float]]:
    return [
        tuple(100 * (one[kind]["strengths"][strength][name] - one["standard"][name]) for name in (kind, CLEAN))
        for one in seeds
        for kind in STRONG
    ]


def _transferred(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    moved = {kind: [_change(one["transfer"], kind, "other") for one in seeds] for kind in digits.CORRUPTIONS}
    shallow = {
        kind: [_change(one["transfer"], kind, "other, 2 layers") for one in seeds] for kind in digits.CORRUPTIONS
    }
    own = {kind: [_change(one["transfer"], kind, "own") for one in seeds] for kind in digits.CORRUPTIONS}
    claims = [
        Claim(
            f"signatures of digits 0-4 help on digits 5-9 (3 layers, {kind})",
            f"RA {_text(moved[kind])}; 2 layers {_text(shallow[kind])}; 3 of their own {_text(own[kind])}",
            min(moved[kind]) > 0,
        )
        for kind in digits.CORRUPTIONS
    ]
    cosines = [(kind, one["transfer"][kind]["cosines"]) for one in seeds for kind in digits.CORRUPTIONS]
    nearest = [max(found, key=found.__getitem__) == kind for kind, found in cosines]
    other = [value for kind, found in cosines for name, value in found.items() if name != kind]
    by_kind = {kind: [found[kind] for name, found in cosines if name == kind] for kind in digits.CORRUPTIONS}
    same = ", ".join(f"{kind} {sum(values) / len(values):.2f}" for kind, values in by_kind.items())
    foretold = [
        (value >= UNRELATED) == (gain > 0)
        for kind in digits.CORRUPTIONS
        for value, gain in zip(by_kind[kind], moved[kind], strict=True)
    ]
    return [
        *claims,
        Claim(
            "signatures identify the damage: the nearest of other digits is of the same kind",
            f"{sum(nearest)} of {len(nearest)}; cosine {same}, of different damage {sum(other) / len(other):.2f} "
            f"({min(other):.2f} to {max(other):.2f})",
            all(nearest),
        ),
        Claim(
            f"their cosine, from {UNRELATED} on, foretells whether they help on other digits",
            f"{sum(foretold)} of {len(foretold)}",
            all(foretold),
        ),
    ]


def _used(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    claims = []
    added = [100 * (one["composed"][kind] - one["standard"][kind]) for one in seeds for kind in STRONG]
    clean = [100 * (one["composed"][CLEAN] - one["standard"][CLEAN]) for one in seeds]
    squared = [100 * (one["authors"][kind] - one["standard"][kind]) for one in seeds for kind in STRONG]
    claims.append(
        Claim(
            "signatures add up: half of blur and half of contrast help against both",
            f"RA {_text(added)}, TA {_text(clean)}; with the authors' squared weights RA {_text(squared)}",
            min(added) > 0,
        )
    )
    later = [100 * (one["updated"][kind][kind] - one["updated"]["before"][kind]) for one in seeds for kind in STRONG]
    claims.append(
        Claim(
            "an updated backbone takes the old signature (blur and contrast): RA at least +3 points",
            f"RA {_text(later)}",
            min(later) >= 3,
        )
    )
    chosen = [one["chosen"][kind] for one in seeds for kind in STRONG]
    cost, gain = (
        [100 * (one["after"][name(kind)] - one["before"][name(kind)]) for one, kind in _with_kinds(chosen)]
        for name in (lambda _: CLEAN, lambda kind: kind)
    )
    settings = ", ".join(
        f"{one['chosen']['layers']} x {one['chosen']['strength']:g}" for one in chosen if one["chosen"]
    )
    claims.append(
        Claim(
            f"layers and strength chosen on validation keep TA within {100 * BUDGET:.0f} points on average, and help",
            f"TA {_text(cost)}, RA {_text(gain)}; layers x strength: {settings}",
            len(gain) == len(chosen) and sum(cost) / len(cost) >= -100 * BUDGET and min(gain) > 0,
        )
    )
    return claims


def _with_kinds(chosen: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    kinds = [STRONG[index % len(STRONG)] for index in range(len(chosen))]
    return [(one, kind) for one, kind in zip(chosen, kinds, strict=True) if one["chosen"]]


def _change(found: Mapping[str, Any], kind: str, arm: str) -> float:
    return 100 * float(found[kind][arm][kind] - found["before"][kind])


def _files(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    losses = {
        how: [
            100 * (one[kind]["quantised"][how][kind] - one[kind]["3 layers"][kind]) for one in seeds for kind in STRONG
        ]
        for how in QUANTISERS
    }
    small = seeds[0]["contrast"]["quantised"]["int8"]["bytes"]
    return [
        Claim(
            "quantising to 16 levels costs at most 2 points of RA (3 layers, blur and contrast)",
            "; ".join(f"{how} {_text(values)}" for how, values in losses.items()),
            min(losses["linear:16"]) >= -2,
        ),
        Claim(
            "an int8 signature of 3 layers is at least 13 times smaller than the model",
            f"{seeds[0]['bytes']:,} bytes to {small:,}: {seeds[0]['bytes'] / small:.1f} times",
            seeds[0]["bytes"] / small >= 13,
        ),
        Claim(
            "taken off, every patch leaves the model bit for bit as it was",
            f"{sum(bool(one['restored']) for one in seeds)} of {len(seeds)} seeds, after all of the above",
            all(one["restored"] for one in seeds),
        ),
    ]
