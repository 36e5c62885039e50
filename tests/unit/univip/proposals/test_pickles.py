"""Pickles of boxes are read; what is more than boxes is refused before it can do anything."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from univip.errors import DataError
from univip.proposals.pickles import read_pickle
from univip.types import Boxes

ROWS = [[[1, 2, 300, 70_000], [5, 6, 7, 8]], [[9, 9, 9, 9]], [], [[0, 0, 1, 1]] * 3]


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], list[Boxes] | dict[str, Boxes]]:
    def read(content: bytes) -> list[Boxes] | dict[str, Boxes]:
        path = tmp_path / "boxes.pkl"
        path.write_bytes(content)
        with path.open("rb") as file:
            return read_pickle(file)

    return read


Read = Callable[[bytes], Any]


def plain(found: list[Boxes]) -> list[list[list[int]]]:
    assert all(boxes.dtype == np.int32 and boxes.shape[1:] == (4,) for boxes in found)
    return [boxes.tolist() for boxes in found]


def arrays(dtype: str) -> list[np.ndarray]:
    return [np.array(row, dtype).reshape(-1, 4) for row in ROWS]


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [tuple(map(tuple, row)) for row in ROWS],
        [row[0] if len(row) == 1 else row for row in ROWS],  # squeezed
        arrays("int64"),
        arrays("int32"),
        arrays("float64"),
        arrays(">i4"),
        [np.asfortranarray(array) for array in arrays("int64")],
        [list(array) for array in arrays("int64")],  # arrays in lists
        [[list(box) for box in array] for array in arrays("int64")],  # NumPy's numbers in lists
    ],
    ids=range(10),
)
def test_every_way_to_keep_boxes_is_read(read: Read, rows: Any, protocol: int) -> None:
    assert plain(read(pickle.dumps({"bbox": rows}, protocol))) == ROWS
    assert plain(read(pickle.dumps(rows, protocol))) == ROWS
    assert plain(read(pickle.dumps({"bbox": dict(enumerate(rows))}, protocol))) == ROWS
    named = read(pickle.dumps({"bbox": {f"{n}.jpg": row for n, row in enumerate(rows)}}, protocol))
    assert list(named) == [f"{n}.jpg" for n in range(len(ROWS))]
    assert plain(list(named.values())) == ROWS


def test_tensors_are_read_as_scripts_save_them(read: Read) -> None:
    tensors = {f"{n}.jpg": torch.tensor(row) for n, row in enumerate(ROWS)}  # the empty one is of floats
    together = torch.tensor(ROWS[3])

    assert plain(list(read(pickle.dumps({"bbox": tensors})).values())) == ROWS
    assert plain(read(pickle.dumps([together[:1], together[1:]]))) == [ROWS[3][:1], ROWS[3][1:]]


def test_numbers_of_rows_may_come_in_any_order_but_none_may_be_missing(read: Read) -> None:
    assert plain(read(pickle.dumps({2: ROWS[2], 0: ROWS[0], 1: ROWS[1]}))) == ROWS[:3]
    with pytest.raises(DataError, match="numbered from 0 to 1"):
        read(pickle.dumps({0: ROWS[0], 2: ROWS[2]}))


@pytest.mark.parametrize("content", [[], {}, {"bbox": []}, {"bbox": {}}])
def test_no_rows_are_no_rows(read: Read, content: Any) -> None:
    assert read(pickle.dumps(content)) == []


class Calling:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def wish(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


LATER = wish("numpy._core.multiarray", "_reconstruct")
ARRAY = LATER + b"(" + wish("numpy", "ndarray") + b"K\x00\x85C\x01btR"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps(Calling(os.system, "touch hacked")), "asks for `posix.system`"),
        (pickle.dumps(Calling(eval, "open('hacked', 'w')")), "asks for `builtins.eval`"),
        (pickle.dumps(Calling(open, "hacked", "w")), "asks for"),
        (pickle.dumps(Calling(__import__, "os")), "asks for `builtins.__import__`"),
        (pickle.dumps(Calling(getattr, [], "append")), "asks for `builtins.getattr`"),
        (pickle.dumps(Calling(torch.load, "hacked")), "asks for `torch"),
        (pickle.dumps(Calling(np.load, "hacked")), "asks for `numpy"),
        (pickle.dumps(Calling(np.fromfile, "/etc/passwd")), "asks for `numpy"),
        (pickle.dumps([Path("a")]), "asks for `pathlib"),
        (pickle.dumps({1, 2}), "not set"),
        (pickle.dumps({"bbox": {1: [], "a": []}}), "not dict"),
        (pickle.dumps({"bbox": 7}), "not int"),
        (pickle.dumps("text"), "not str"),
        (pickle.dumps([["text"]]), "row 0 must hold boxes"),
        (pickle.dumps([[], [[1, 2, 3]]]), "row 1 must hold boxes"),
        (pickle.dumps([[[1, 2, 3, 4], [1, 2]]]), "row 0 must hold boxes"),
        (pickle.dumps([[[1, 2, 3, 4.5]]]), "row 0 must hold boxes"),
        (pickle.dumps([[[1, 2, 3, float("nan")]]]), "row 0 must hold boxes"),
        (pickle.dumps([[[1, 2, 3, 10**30]]]), "row 0 must hold boxes"),
        (pickle.dumps([[[1, 2, 3, 10**10]]]), "row 0 must hold boxes"),
        (pickle.dumps([[[True] * 4]]), "row 0 must hold boxes"),
        (pickle.dumps([7]), "a row must be a list"),
        (pickle.dumps(np.array([[1, 2, 3, 4]])), "it must hold rows"),
        (pickle.dumps([np.array([[1, None, 3, 4]])]), "arrays must be"),
        (pickle.dumps([np.array([["a"] * 4])]), "arrays must be"),
        (pickle.dumps([np.zeros(3, [("a", "i4")])]), "arrays must be"),
        (pickle.dumps([torch.zeros(4, 4)[:, :2]]), "contiguous"),
        (opcodes(b"P1\n"), "persistent"),
        (opcodes(b"\x82\x01"), "extension"),
        (opcodes(b"\x97"), "buffer"),
        (opcodes(LATER, b"}(", wish("numpy", "ndarray"), b"NuR"), ""),
        (opcodes(ARRAY, b"}(X\x01\x00\x00\x00xK\x01ub"), ""),  # state that is no array's
        (opcodes(ARRAY, b"(K\x01(J\x00\x00\x00\x7fJ\x00\x00\x00\x7ftNNNtb"), ""),
        (b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".", "row"),
        (b"not a pickle", ""),
        (b"", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_what_is_more_than_boxes_is_refused(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, says: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError) as caught:
        read(content)

    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.pkl"]


def test_a_storage_that_asks_torch_for_more_is_refused(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(Calling(os.system, "touch hacked"), inner)
    content = opcodes(
        wish("torch.storage", "_load_from_bytes"),
        b"B",
        struct.pack("<I", len(inner.getvalue())),
        inner.getvalue(),
        b"\x85R",
    )

    with pytest.raises(DataError):
        read(content)

    assert not (tmp_path / "hacked").exists()


def test_what_a_pickle_does_to_a_stand_in_ends_with_it(read: Read) -> None:
    """It may set attributes of what it has found."""
    hostile = opcodes(LATER, b"N}(X\x0c\x00\x00\x00__defaults__)u\x86b0]")
    assert read(hostile) == []

    assert plain(read(pickle.dumps(arrays("int64")))) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        opcodes(b"]r\x00\x00\x00\x70"),  # the memo of two thousand million places
        opcodes(b"\x8e" + struct.pack("<Q", 1 << 40)),  # a terabyte of bytes to come
        opcodes(b"\x8d" + struct.pack("<Q", 1 << 40)),
        opcodes(b"\x96" + struct.pack("<Q", 1 << 40)),
        opcodes(LATER, b"(", wish("numpy", "ndarray"), b"J\x00\x00\x00\x70\x85C\x01btR"),
    ],
)
def test_a_few_bytes_cannot_ask_for_all_memory(read: Read, content: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(DataError):
        read(content)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # KiB
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_a_pickle_cut_at_any_byte_is_refused(read: Read) -> None:
    content = pickletools.optimize(pickle.dumps({"bbox": [*ROWS, *arrays("int64")]}))
    assert len(read(content)) == 8
    for cut in range(len(content)):
        with pytest.raises(DataError):
            read(content[:cut])
