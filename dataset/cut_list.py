"""Lists in messages: enough to recognize, never a page."""

from collections.abc import Iterable


def cut_list(names: Iterable[object], *, most: int = 5) -> str:
    """Return ``A, B, C and 37 more``: the first names, each cut to 40 characters."""
    texts = [str(name) for name in names]
    shown = ", ".join(text if len(text) <= 40 else f"{text[:39]}…" for text in texts[:most])
    return shown + (f" and {len(texts) - most:,} more" if len(texts) > most else "")
