"""Fewer points without losing what matters: a curve as buckets that keep their extremes.

A week of training has more records than a screen has columns. Each bucket of neighbouring records keeps
mean, minimum and maximum of its finite values, and says that it holds others: one NaN among a hundred
thousand values is still there. Buckets are aligned to multiples of a power of two, so that the finished ones
never change while a run grows, and a reader fetches only the last ones again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Column:
    """One value per record.

    Attributes:
        values: [N]; NaN where there is no finite one.
        lows, highs: [N] extremes since the record before; `values` itself where those are not recorded.
        bad: Row to the name of a value that was recorded and is not finite: NaN, Infinity, -Infinity.
        is_amount: Whether buckets add up, as seconds do, instead of having a mean and extremes.
    """

    values: Floats
    lows: Floats
    highs: Floats
    bad: dict[int, str]
    is_amount: bool = False


def bucket_size(num_rows: int, points: int) -> int:
    """Least power of two of which at most `points` multiples cover the rows."""
    size = 1
    while size * points < num_rows:
        size *= 2
    return size


def edges(start: int, stop: int, size: int) -> Rows:
    """First row of each bucket that holds a row of [start, stop)."""
    if stop <= start:
        return np.empty(0, dtype=np.intp)
    inner = np.arange((start // size + 1) * size, stop, size)
    return np.concatenate(([start], inner)).astype(np.intp)


def reduce(column: Column, rows: Rows, firsts: Rows, stop: int) -> dict[str, Any]:
    """One column as JSON values, bucket by bucket.

    Args:
        column: All records of the run.
        rows: Which of them are drawn, in order.
        firsts: Where in `rows` each bucket begins, see `edges`.
        stop: Where in `rows` the last bucket ends.

    Returns:
        `sum` of an amount, else `mean`, `min` and `max`, null where there is nothing finite; and `bad`, pairs
        of bucket and name.
    """
    if not len(firsts):
        return {"sum": [], "bad": []} if column.is_amount else {"mean": [], "min": [], "max": [], "bad": []}
    drawn, begins = rows[firsts[0] : stop], firsts - firsts[0]
    values = column.values[drawn]
    is_finite = np.isfinite(values)
    totals = np.add.reduceat(np.where(is_finite, values, 0.0), begins)
    counts = np.add.reduceat(is_finite.astype(np.intp), begins)
    bad = _bad(column.bad, drawn, begins)
    if column.is_amount:
        return {"sum": numbers(np.where(counts > 0, totals, np.nan)), "bad": bad}
    means = np.divide(totals, counts, out=np.full(len(begins), np.nan), where=counts > 0)
    return {
        "mean": numbers(means),
        "min": numbers(np.fmin.reduceat(column.lows[drawn], begins)),
        "max": numbers(np.fmax.reduceat(column.highs[drawn], begins)),
        "bad": bad,
    }


def numbers(values: Floats, digits: int = 6) -> list[float | None]:
    """Values to some significant digits, as JSON has them."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


def _bad(bad: dict[int, str], drawn: Rows, begins: Rows) -> list[tuple[int, str]]:
    """Bucket and name of each value that is not finite, one of each name a bucket."""
    if not bad:
        return []
    places = np.flatnonzero(np.isin(drawn, np.fromiter(bad, dtype=np.intp)))
    buckets = np.searchsorted(begins, places, side="right") - 1
    pairs = zip(buckets.tolist(), drawn[places].tolist(), strict=True)
    return sorted({(bucket, bad[row]) for bucket, row in pairs})
