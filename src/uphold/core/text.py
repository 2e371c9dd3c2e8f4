"""Names that other people chose, in the lines that we print."""

from __future__ import annotations


def one_line(text: str, most: int = 80) -> str:
    """`text` with white space folded into single blanks, cut with an ellipsis beyond `most` characters.

    A tag's value may be a whole prompt; line breaks in it would tear tables apart and could begin a line that a CI
    system takes for a command.
    """
    folded = " ".join(text.split())
    return folded if len(folded) <= most else folded[: most - 1] + "…"
