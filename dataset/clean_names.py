"""Names of types, donors and time points without what nobody can see in them.

``human4`` and ``human4 `` are one donor to everybody but a computer, which would put the one in
train and the other in test. So are names of which one has a no-break space or a zero-width
character, and an é that is one character in one file and two in another.
"""

import unicodedata

import numpy as np
import pandas as pd

SHOWN = 5  # changed names in a message


def clean_names(column: pd.Series, key: str) -> tuple[pd.Series, str | None]:
    """Take what is invisible out of the texts of an obs column; all else stays as it is.

    Parameters
    ----------
    column
        Values, ``(n_cells,)``; the order of ordered categories is kept.
    key
        Name of the column.

    Returns
    -------
    The column, and a message if it was changed.
    """
    is_category = isinstance(column.dtype, pd.CategoricalDtype)
    distinct = column.cat.categories if is_category else column.dropna().unique()
    cleaned = {name: clean(name) for name in distinct if isinstance(name, str)}
    changed = {name: new for name, new in cleaned.items() if new != name}
    if not changed:
        return column, None
    shown = [f"{name!r} as {new!r}" for name, new in list(changed.items())[:SHOWN]]
    more = f" and {len(changed) - SHOWN:,} more" if len(changed) > SHOWN else ""
    message = f"obs {key!r}: read without invisible characters: {', '.join(shown)}{more}"
    codes, found = pd.factorize(column) if not is_category else (column.cat.codes, distinct)
    names = [changed.get(name, name) for name in found]
    code_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    numbers = np.array([*(code_of[name] for name in names), -1])[np.asarray(codes)]
    ordered = is_category and bool(column.cat.ordered)
    categories = pd.Index(list(code_of), dtype=object)
    new = pd.Series(pd.Categorical.from_codes(numbers, categories, ordered=ordered))
    return (new if is_category else new.astype(object)), message


def clean(name: str) -> str:
    """Return a name in Unicode's composed form, with plain spaces, and none around it."""
    if name.isascii() and name.isprintable():
        return name.strip()
    spaced = (" " if c.isspace() else c for c in unicodedata.normalize("NFC", name))
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf")).strip()
