"""ORL's JSON read as a stream is what `json` reads as a whole; anything else is refused with its place."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from univip.errors import DataError
from univip.proposals import orl
from univip.proposals.orl import read_rows, write_rows

Row = list[list[int]]


class File(io.BytesIO):
    name = "proposals.json"


def read(text: str | bytes, **options: int) -> list[Row]:
    """Rows as nested lists."""
    found = []
    for rows in read_rows(File(text.encode() if isinstance(text, str) else text), **options):
        assert rows.boxes.dtype == np.int32
        ends = rows.counts.cumsum()
        assert ends[-1] == len(rows.boxes)
        found += [part.tolist() for part in np.split(rows.boxes, ends[:-1])]
    return found


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Before any test of many examples: hypothesis takes a slow first call for a mistake."""
    read('{"bbox": [[[1, 2, 3, 4]], [5, 6, 7, 8], []]}')


numbers = st.integers(-1, 12) | st.integers(-999_999_999, 999_999_999)
rows_of_files = st.lists(st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=5), max_size=8)
chunk_sizes = st.integers(1, 60)
separators = st.sampled_from([(", ", ": "), (",", ":"), (" ,\n\t", " :\r\n")])


def squeezed(rows: list[Row]) -> list[Any]:
    """As ORL's writer leaves them."""
    return [row[0] if len(row) == 1 else row for row in rows]


@given(rows_of_files, separators, chunk_sizes, st.booleans())
def test_rows_come_back_whatever_the_white_space_and_the_chunks(
    rows: list[Row], separators: tuple[str, str], chunk: int, is_squeezed: bool
) -> None:
    text = json.dumps({"bbox": squeezed(rows) if is_squeezed else rows}, separators=separators)

    with mock.patch.object(orl, "_CHUNK_BYTES", chunk):
        assert read(text) == rows


@given(rows_of_files, chunk_sizes, st.data())
def test_reading_goes_on_behind_any_row(rows: list[Row], chunk: int, data: st.DataObject) -> None:
    text = json.dumps({"bbox": rows}).encode()
    with mock.patch.object(orl, "_CHUNK_BYTES", chunk):
        blocks = list(read_rows(File(text)))
        if not blocks:
            return
        kept = data.draw(st.integers(1, len(blocks)))
        done = sum(len(block.counts) for block in blocks[:kept])

        assert read(text, start=blocks[kept - 1].end, row=done) == rows[done:]


def test_further_keys_before_and_behind_are_stepped_over() -> None:
    text = '{"info": {"bbox": [1]}, "list": [[[[0]]], "]"], "bbox": [[[1, 2, 3, 4]]], "done": {"a": "}"}}\n'

    assert read(text) == [[[1, 2, 3, 4]]]


def test_a_text_cut_at_any_byte_is_refused() -> None:
    text = (
        b'{"a": [1], "bbox": [[[1, 2, 3, 4], [50, 60, 70, 80]], [7, 8, 9, 10], [], [[1, 1, 1, 1]]], "b": 2}'
    )
    assert len(read(text)) == 4
    for chunk in (1, 7, 1 << 20):
        with mock.patch.object(orl, "_CHUNK_BYTES", chunk):
            for cut in range(len(text)):
                with pytest.raises(DataError, match=r"must be ORL's JSON, but are not"):
                    read(text[:cut])


@given(st.binary(max_size=3), st.integers(0, 60), st.integers(0, 3))
def test_a_damaged_text_is_refused_or_means_what_json_says(new: bytes, place: int, removed: int) -> None:
    text = b'{"bbox": [[[1, 2, 3, 4], [50, 60, 70, 80]], [7, 8, 9, 10], []]}'
    text = text[:place] + new + text[place + removed :]
    try:
        found = read(text)
    except DataError:
        return
    expected = json.loads(text.decode("latin-1"))["bbox"]
    assert found == [[row] if row and isinstance(row[0], int) else row for row in expected]


BOX = "[1, 2, 3, 4]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the end"),
        ("[]", "must follow at character 0"),
        ("{}", "they have no `bbox`"),
        ('{"boxes": []}', "they have no `bbox`"),
        ('{"bbox": {}}', "`[` must follow"),
        ('{"bbox": null}', "`[` must follow"),
        ('{"bbox": [], "bbox": []}', "they have `bbox` twice"),
        ('{"bbox": []} x', "the end must follow"),
        ('{"bbox": []}{"bbox": []}', "the end must follow"),
        ('{"bbox": [[[1, 2, 3]]]}', "a box `[x, y, w, h]` must follow at byte 19 in row 0"),
        ('{"bbox": [[], [[1, 2, 3, 4, 5]]]}', "a box `[x, y, w, h]` must follow at byte 26 in row 1"),
        (
            '{"bbox": [[[1, 2, 3, 4.5]]]}',
            "a whole number of at most 9 digits must follow at byte 21 in row 0",
        ),
        ('{"bbox": [[[1, 2, 3, 4e5]]]}', "a whole number"),
        ('{"bbox": [[[1, 2, 3, 04]]]}', "a whole number"),
        ('{"bbox": [[[1, 2, 3, +4]]]}', "a whole number"),
        ('{"bbox": [[[1, 2, 3, - 4]]]}', "a whole number"),
        ('{"bbox": [[[1, 2, 3, 1234567890]]]}', "a whole number"),
        ('{"bbox": [[[1, 2, 3, NaN]]]}', "a whole number"),
        ('{"bbox": [[[1, 2, 3, "4"]]]}', "a whole number"),
        ('{"bbox": [[[1, 2, 3, null]]]}', "a whole number"),
        ('{"bbox": [[[[1, 2, 3, 4]]]]}', "a whole number"),
        ('{"bbox": [[[1 2, 3, 4]]]}', "a box"),
        (f'{{"bbox": [[{BOX} {BOX}]]}}', "a box"),
        (f'{{"bbox": [[{BOX},]]}}', "a box"),
        (f'{{"bbox": [[{BOX}],]}}', "a row"),
        (f'{{"bbox": [[{BOX}] [{BOX}]]}}', "a row"),
        (f'{{"bbox": [,[{BOX}]]}}', "a row"),
        (f'{{"bbox": [{BOX}, 5]}}', "a row"),
        ('{"bbox": [[1, 2, 3]]}', "a box"),
        ('{"bbox": [[[]]]}', "a whole number"),
        ('{"bbox": ["[[1, 2, 3, 4]]"]}', "a row"),
        ('{"bbox": [' + "[" * 100_000, "a whole number"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_this_format_is_refused_with_its_place(text: str, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read(text)

    assert caught.value.where == "proposals.json"
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("endless", [b"[[1, 2, 3, 4], ", b"  "])
def test_a_row_without_end_does_not_fill_the_memory(endless: bytes) -> None:
    start = b'{"bbox": [['
    with mock.patch.object(orl, "_CHUNK_BYTES", 1 << 12), mock.patch.object(orl, "_MAX_ROW_BYTES", 1 << 16):
        file = File(start + b"[1, 2, 3, 4], " * 40_000 if endless[:1] == b"[" else start + b" " * 600_000)
        with pytest.raises(DataError, match="row 0 is longer than"):
            list(read_rows(file))
        assert file.tell() < 4 << 16


def test_a_file_is_written_as_orls_writer_does(tmp_path: Path) -> None:
    rows = [[[1, 2, 3, 4], [5, 6, 7, 8]], [[9, 9, 9, 9]], [], [[0, 0, 1, 1]] * 3]
    boxes = [np.array(row, np.int32).reshape(-1, 4) for row in rows]

    write_rows(tmp_path / "a.json", iter(boxes))

    assert (tmp_path / "a.json").read_text() == json.dumps({"bbox": squeezed(rows)})
    with (tmp_path / "a.json").open("rb") as file:
        [found] = read_rows(file)
    assert found.counts.tolist() == [2, 1, 0, 3]
    np.testing.assert_array_equal(found.boxes, np.concatenate(boxes))
