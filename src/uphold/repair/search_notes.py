"""What a reader must know of a search to read its numbers rightly."""

from __future__ import annotations

from collections.abc import Iterator

from uphold.repair.search_result import Search

_OBSERVED = {
    "level": "it was chosen because it was not observed to be lower",
    "near": "it was chosen because no better one was at least observed not to be lower, and it is lower by no more "
    "than the margin",
}


def notes_on(search: Search) -> Iterator[str]:
    """Sentences on the choice: how it was made, what it rests on, and what was left out."""
    chosen, margin = search.winner, search.config.margin
    lost = f"{margin:.3g}" if search.continuous else f"{100 * margin:.2g} points"
    open_ = [trial for trial in search.finished if search.config.pairs or not trial.paragon]
    if chosen is not None and chosen.validation is not None:
        if len(open_) > 1:
            yield (
                f"chosen as the lowest validation NFR among {len(open_)} repairs: that NFR is the best of several and "
                "so optimistic; the test split was not looked at for choosing, so its numbers are not"
            )
        one = chosen.validation
        if one.standing == "kept":
            yield (
                f"validation shows that its accuracy is at most {lost} below the new version's (p = {one.test.p:.2g})"
            )
        else:
            more = f"; about {one.needed:,} instances would show it half of the time" if one.needed else ""
            yield (
                f"{one.count:,} validation instances do not show that its accuracy is at most {lost} below the "
                f"new version's (p = {one.test.p:.2g}); {_OBSERVED[one.standing]}{more}"
            )
        if search.on_test is not None:
            low = search.on_test.low
            bound = f"{low:+.3f}" if search.continuous else f"{100 * low:+.2f} points"
            word = "shows" if search.on_test.holds else "does not show"
            yield (
                f"the test split {word} that its accuracy is at most {lost} below the new version's "
                f"(95% bound of the difference {bound})"
            )
        yield "every trial was trained once, with one seed: differences between trials are also differences of seeds"
    elif open_:
        yield (
            "no repair has fewer negative flips on validation than the plain update at about its accuracy"
            + (": --strict asks for a shown one" if search.config.strict else "")
        )
    if search.failed:
        yield "a failed trial is not repeated: remove its folder in trials/ to try it again"
    paragons = [trial.label for trial in search.finished if trial.paragon]
    if paragons and not search.config.pairs:
        yield (
            f"not for choosing, because they keep both models at inference: {', '.join(paragons)} (--allow-pairs "
            "chooses among them, too)"
        )
