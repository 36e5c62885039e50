"""Down-sampling: against a plain loop over every value, nothing of which may vanish."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.web.buckets import Column, bucket_size, edges, numbers, reduce

values = st.lists(st.one_of(st.none(), st.floats(width=32), st.just(math.nan)), max_size=200)
NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def column(found: list[float | None]) -> Column:
    """As a history keeps it: what is absent or not finite is NaN, and the latter is named."""
    array = np.array(
        [math.nan if value is None or not math.isfinite(value) else value for value in found],
        dtype=np.float64,
    )
    bad = {
        row: NAMES[str(value)]
        for row, value in enumerate(found)
        if value is not None and not math.isfinite(value)
    }
    return Column(array, array, array, bad)


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


@given(values, st.integers(1, 40))
def test_extremes_means_and_bad_values_are_those_of_a_plain_loop(
    found: list[float | None], points: int
) -> None:
    size = bucket_size(len(found), points)
    firsts = edges(0, len(found), size)

    reduced = reduce(column(found), np.arange(len(found)), firsts, len(found))

    pieces = [found[start : start + size] for start in range(0, len(found), size)]
    assert len(pieces) <= points
    finite = [[value for value in piece if value is not None and math.isfinite(value)] for piece in pieces]
    assert reduced["min"] == [rounded(min(piece, default=None)) for piece in finite]
    assert reduced["max"] == [rounded(max(piece, default=None)) for piece in finite]
    for mean, piece in zip(reduced["mean"], finite, strict=True):
        assert (mean is None) == (not piece)
        if mean is not None:
            assert mean == pytest.approx(
                math.fsum(piece) / len(piece), rel=1e-4, abs=1e-4 * max(map(abs, piece))
            )
    assert reduced["bad"] == sorted(
        {
            (bucket, NAMES[str(value)])
            for bucket, piece in enumerate(pieces)
            for value in piece
            if value is not None and not math.isfinite(value)
        }
    )


@given(values, st.integers(1, 64), st.integers(0, 200))
def test_what_a_reader_has_and_what_is_new_together_are_the_whole(
    found: list[float | None], size: int, known: int
) -> None:
    known = min(known, len(found))
    rows = np.arange(len(found))
    whole = reduce(column(found), rows, edges(0, len(found), size), len(found))
    before = reduce(column(found[:known]), rows[:known], edges(0, known, size), known)
    begin = max(0, known - 1) // size * size  # the last bucket was not full, perhaps

    after = reduce(column(found), rows, edges(begin, len(found), size), len(found))

    for name in ("mean", "min", "max"):
        assert before[name][: begin // size] + after[name] == whole[name]


def test_amounts_add_up() -> None:
    amounts = np.array([1.0, 2.0, math.nan, 4.0, 5.0])

    reduced = reduce(Column(amounts, amounts, amounts, {}, is_amount=True), np.arange(5), edges(0, 5, 2), 5)

    assert reduced["sum"] == [3.0, 4.0, 5.0]


def test_extremes_come_from_between_the_records() -> None:
    """A record holds the least and greatest since the one before; a spike between two is one of those."""
    mean, low, high = np.array([3.0, 3.0]), np.array([2.0, 3.0]), np.array([3.0, 90.0])

    reduced = reduce(Column(mean, low, high, {}), np.arange(2), edges(0, 2, 2), 2)

    assert (reduced["mean"], reduced["min"], reduced["max"]) == ([3.0], [2.0], [90.0])


@given(st.integers(0, 1000), st.integers(0, 300), st.integers(1, 64))
def test_inner_edges_are_multiples_of_the_size_and_every_row_is_in_one_bucket(
    start: int, length: int, size: int
) -> None:
    found = edges(start, start + length, size).tolist()

    assert found == sorted({start, *range(-(-start // size) * size, start + length, size)} if length else [])


def test_nothing_that_is_not_finite_is_given_as_a_number() -> None:
    assert numbers(np.array([1.23456789, math.nan, math.inf, -math.inf])) == [1.23457, None, None, None]
