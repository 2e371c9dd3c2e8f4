"""The report's first sentence, and the remarks that keep it honest."""

from __future__ import annotations

from uphold.report.data import ReportData, Version
from uphold.report.text import p_value, short, signed_percent

_ALPHA = 0.05


def verdict(data: ReportData) -> str:
    """What the update does to accuracy and to single instances, and what the repair does about it."""
    sentence = f"The update {_gain(data)} and {_breakage(data)}"
    repaired = data.repaired
    return f"{sentence}; {_repair(data, repaired)}." if repaired else f"{sentence}."


def remarks(data: ReportData) -> tuple[str, ...]:
    """Sentences on chance: paired tests, whether the NFR stands out from the noise floor, and what could be seen."""
    lines = []
    test = data.before.test
    word = "beyond chance" if test.p < _ALPHA else "within chance"
    unit = "the mean score" if data.continuous else "accuracy"
    lines.append(f"The change of {unit} is {word} ({test.name} {p_value(test.p)}).")
    lines.append(_floor_remark(data))
    smallest = data.before.smallest_visible_nfr
    if smallest is not None:
        lines.append(f"With {data.before.count:,} instances an NFR of {short(smallest)} would be seen with 80% power.")
    if data.repaired is not None:
        lines.extend(_cost(data, data.repaired))
    if data.repair is not None and data.repair.form == "pair":
        lines.append("The repaired version asks both models for every instance.")
    if data.repair_p is not None:
        effects = data.instances.effects
        fixed, broken = effects.get("fixed", 0), effects.get("newly broken", 0)
        negative = data.instances.kinds.get("negative", 0)
        word = "beyond chance" if data.repair_p < _ALPHA else "within chance"
        lines.append(
            f"The repair fixes {fixed:,} of {negative:,} negative flips and newly breaks {broken:,}: "
            f"a difference {word} (exact McNemar {p_value(data.repair_p)})."
        )
    if data.stale:
        lines.append(data.stale)
    return tuple(lines)


def _gain(data: ReportData) -> str:
    old, new = data.versions[0].score.value, data.new.score.value
    if old is None or new is None:
        return "has an undefined accuracy"
    verb = "gains" if new > old else "loses"
    if data.continuous:
        if f"{old:.3f}" == f"{new:.3f}":
            return f"leaves the mean score at {new:.3f}"
        return f"{verb} {abs(new - old):.3f} of mean score ({old:.3f} → {new:.3f})"
    points = f"{100 * abs(new - old):.1f}"
    if points == "0.0":
        return f"leaves accuracy at {short(new)}"
    noun = "point" if points == "1.0" else "points"
    return f"{verb} {points} {noun} of accuracy ({short(old)} → {short(new)})"


def _breakage(data: ReportData) -> str:
    rate = data.new.rate(data.nfr)
    if rate is None or rate.value is None:
        return "has an undefined NFR"
    if data.continuous:
        return f"lowers the score of {short(rate.value)} of instances" if rate.value else "lowers no instance's score"
    return f"breaks {short(rate.value)} of instances" if rate.value else "breaks no instance"


def _repair(data: ReportData, repaired: Version) -> str:
    now, plain = repaired.rate(data.nfr), data.new.rate(data.nfr)
    score = short(repaired.score.value, repaired.score.unit)
    at = f"at {score} {'mean score' if data.continuous else 'accuracy'}"
    if now is None or plain is None or now.value is None or plain.value is None:
        return f"{repaired.label} has an undefined NFR {at}"
    if short(now.value) == short(plain.value):
        return f"{repaired.label} leaves that at {short(now.value)}, {at}"
    verb = "brings that down to" if now.value < plain.value else "raises that to"
    change = data.change(repaired)
    share = f" ({signed_percent(change)})" if change is not None else ""
    return f"{repaired.label} {verb} {short(now.value)}{share} {at}"


def _cost(data: ReportData, repaired: Version) -> list[str]:
    """How much of the gain the repair gives up or adds, where a reader would see it."""
    plain, now = data.new.score.value, repaired.score.value
    if plain is None or now is None:
        return []
    unit, size = (
        ("mean score", f"{abs(now - plain):.3f}")
        if data.continuous
        else ("accuracy", f"{100 * abs(now - plain):.1f} points")
    )
    if float(size.split()[0]) == 0:
        return []
    word = "below" if now < plain else "above"
    return [f"The {unit} of {repaired.label} is {size} {word} that of the plain update."]


def _floor_remark(data: ReportData) -> str:
    rate = data.new.rate(data.nfr)
    if rate is None or rate.floor is None:
        return "No noise floor was measured: how many flips the old model has against itself is unknown."
    floor = short(rate.floor)
    if rate.low is None:
        return f"The noise floor of the NFR is {floor}."
    word = "beyond" if rate.low > rate.floor else "not beyond"
    update = "plain update" if data.repair else "update"
    return f"The NFR of the {update} is {word} its noise floor of {floor} (the old model against itself)."
