"""One obs column of several files, one behind the other; categories in an order keep it."""

from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np
import pandas as pd

from dataset.nearest_names import shortened
from dataset.reading.cell_file import ColumnError
from dataset.reading.cell_table import CellTable


def join_column(
    key: str, parts: list[pd.Series | None], tables: list[CellTable], *, needs_order: bool
) -> pd.Series:
    """Put the column of each file one behind the other.

    Categories that are in an order (of time points, say) stay so: what comes before what is taken
    from all files together. Where they do not tell, the categories have no order.

    Parameters
    ----------
    key
        Name of the column.
    parts, tables
        The column of each file (None: it has no such column), and its obs.
    needs_order
        Raise if files have an order, and together they do not tell that of all values.

    Raises
    ------
    ColumnError
        If the orders of two files contradict each other.
    """
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    found = [part for part in parts if part is not None]
    dtypes = {str(part.dtype) for part in found}
    if len(found) == len(parts) and len(dtypes) == 1 and dtypes != {"category"}:
        joined = pd.concat(found, ignore_index=True)
        return joined.astype(object) if dtypes == {"object"} else joined
    arrays = [
        np.full(table.n_cells, np.nan, dtype=object) if part is None else part.to_numpy(object)
        for part, table in zip(parts, tables, strict=True)
    ]
    values = np.concatenate(arrays)
    orders = [list(part.cat.categories) for part in found if _is_ordered(part)]
    if orders:
        order = _joined_order(key, orders, tables)
        plain = [part.dropna().unique() for part in found if not _is_ordered(part)]
        unplaced = sorted({str(value) for part in plain for value in part if value not in order})
        if order and not unplaced:
            return pd.Series(pd.Categorical(values, order, ordered=True))
        if needs_order:
            names = shortened([table.path.name for table in tables])
            said = (
                f"of {', '.join(unplaced)}" if unplaced else "of values that are never in one file"
            )
            raise ColumnError(
                f"{names}: obs {key!r}: the order {said} is not known: give the column the same "
                "ordered categories in all files"
            )
    if dtypes == {"category"}:
        return pd.Series(pd.Categorical(values))
    return pd.Series(values, dtype=object).infer_objects()


def compare_columns(tables: list[CellTable], messages: list[str]) -> None:
    """Say in a message which files lack a column that another has."""
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    for table in tables:
        if lacking := [column for column in columns if column not in table.columns]:
            messages.append(f"{table.path.name}: no obs columns {shortened(lacking)}: left empty")


def _is_ordered(part: pd.Series) -> bool:
    return isinstance(part.dtype, pd.CategoricalDtype) and bool(part.dtype.ordered)


def _joined_order(key: str, orders: list[list], tables: list[CellTable]) -> list:
    """Return the one order that agrees with all, an empty one if several do."""
    after: dict = {value: set() for order in orders for value in order}
    for order in orders:
        for earlier, later in pairwise(order):
            after[later].add(earlier)
    try:
        order = list(TopologicalSorter(after).static_order())
    except CycleError as error:
        circle = " < ".join(map(str, error.args[1]))
        names = shortened([table.path.name for table in tables])
        raise ColumnError(
            f"{names}: obs {key!r}: the files contradict each other on the order of its values "
            f"({circle}): give the column the same ordered categories in all files"
        ) from None
    known = all(earlier in after[later] for earlier, later in pairwise(order))
    return order if known else []
