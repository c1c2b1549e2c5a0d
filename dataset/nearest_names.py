"""Suggestions for a name that is not there: the nearest that are, and the list of all."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 300  # characters of a list


def nearest(name: str, names: Iterable[str], what: str = "columns") -> str:
    """Return the end of a message: ``; did you mean 'donor'? columns: cell_type, donor``."""
    names = [str(known) for known in names]
    lower = {known.lower(): known for known in reversed(names)}
    close = [lower[match] for match in get_close_matches(name.lower(), lower, n=2)]
    guess = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"; {guess}{what}: {shortened(names)}"


def shortened(names: list[str]) -> str:
    """Return names in a list that ends where it becomes too long to read."""
    shown: list[str] = []
    n_characters = 0
    for name in names:
        if shown and n_characters + len(name) > LONGEST:
            return ", ".join(shown) + f", ... ({len(names):,} in all)"
        shown.append(name if len(name) <= LONGEST else f"{name[:LONGEST]}...")
        n_characters += len(name) + 2
    return ", ".join(shown) or "none"
