"""Proposals in pickles, as scripts around UniVIP keep them, read without running what a pickle may ask for.

A pickle is a program: it may import any function and call it. Here the only names it can import are those by
which NumPy arrays and torch tensors come back, and even these are answered by stand-ins of our own that
accept numbers and bytes, nothing else. Whatever else is asked for is refused before anything happens.

    {"bbox": rows} or rows      rows = a list (row i is image i), {row number: row} or {file name: row}
    row                         boxes [x, y, w, h]: nested lists, an array or a tensor; or one box alone

Pickles are read whole, so they need memory: some fifteen bytes per byte of nested lists.
"""

from __future__ import annotations

import io
import math
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from univip.errors import DataError
from univip.proposals.orl import KEY

if TYPE_CHECKING:
    from univip.types import Boxes

_FIX = "fetch the file again, or import the JSON file it was made from"
_ROOM_BYTES = 1 << 30  # that any pickle may take; a hostile one asks for terabytes in ten bytes
_ROOM_PER_BYTE = 40
_NUMBERS = "biuf"  # kinds of NumPy's dtypes
_NOT_SUPPORTED = "arrays must be whole numbers or floats in native order, but one is not"


def read_pickle(file: BinaryIO) -> list[Boxes] | dict[str, Boxes]:
    """Read the boxes of a pickle.

    Returns:
        Boxes int32 [M, 4] xywh by row number or by file name.

    Raises:
        DataError: If the file is damaged, asks for anything but numbers, lists, dicts and arrays, or holds
            other things than boxes.
    """
    try:
        with _limited_memory(Path(file.name).stat().st_size):
            return _rows(_Unpickler(file).load())
    except (MemoryError, RecursionError) as error:
        raise DataError(
            "the pickle must fit in memory, but does not: it is hostile, or too large to be read whole.",
            where=file.name,
            fix="import the JSON file it was made from, which takes little memory",
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything, and nothing was changed
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"proposals must be a pickle of boxes, but are not: {reason}.", where=file.name, fix=_FIX
        ) from error


class _Unpickler(pickle.Unpickler):
    """Finds nothing but stand-ins; see the module."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return None  # what kind of array is to be made; there is only one
        for modules, known, stand_in in _STAND_INS:
            if module in modules and name == known:
                # Wrapped, because a pickle may also set attributes of what it finds.
                return lambda *arguments: stand_in(*arguments)
        raise pickle.UnpicklingError(f"it asks for `{module}.{name}`, which is no part of an array")


class _Type:
    """Stands for `numpy.dtype`."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, *_: object) -> None:
        if type(name) is not str or len(name) > 3 or name[:1] not in _NUMBERS:
            raise pickle.UnpicklingError(_NOT_SUPPORTED)
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands for an array: empty until its state is set, as NumPy makes them."""

    __slots__ = ("value",)

    def __init__(self, *_: object) -> None:
        self.value: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_column_major, content = state
        self.value = _array(content, kind, shape, is_column_major)


def _array(content: Any, kind: Any, shape: Any, is_column_major: Any) -> npt.NDArray[Any]:
    """An array from its bytes; NumPy checks that their number is right."""
    if type(kind) is not _Type or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError(_NOT_SUPPORTED)
    return np.frombuffer(content, kind.dtype).reshape(shape, order="F" if is_column_major else "C")


class _FromBuffer(_Array):
    """Stands for `numpy._core.numeric._frombuffer`, NumPy's other way (protocol 5)."""

    __slots__ = ()

    def __init__(self, content: Any, kind: Any, shape: Any, order: Any) -> None:
        self.value = _array(content, kind, shape, order == "F")


class _Scalar(_Array):
    """Stands for a NumPy number."""

    __slots__ = ()

    def __init__(self, kind: Any, content: Any) -> None:
        self.value = _array(content, kind, (), False)


class _Storage(_Array):
    """Stands for a storage of torch: a file of torch inside the pickle, which torch reads as weights only."""

    __slots__ = ()

    def __init__(self, content: Any) -> None:
        import torch

        if type(content) is not bytes:
            raise pickle.UnpicklingError("a storage of torch must be bytes, but is not")
        storage = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        if not isinstance(storage, torch.TypedStorage):
            raise pickle.UnpicklingError("a storage of torch must be one, but is not")
        dtype, data = storage.dtype, storage._untyped_storage
        self.value = torch.tensor([], dtype=dtype).set_(data).numpy() if len(data) else np.empty(0)


class _Tensor(_Array):
    """Stands for a tensor: a contiguous part of a storage."""

    __slots__ = ()

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> None:
        is_part = type(storage) is _Storage and all(
            type(size) is int and size >= 0 for size in (offset, *shape)
        )
        if not is_part or strides != tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))):
            raise pickle.UnpicklingError("a tensor must be a contiguous part of a storage, but is not")
        self.value = storage.value[offset : offset + math.prod(shape)].reshape(shape)


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_STAND_INS: list[tuple[tuple[str, ...], str, Callable[..., Any]]] = [
    (("numpy",), "dtype", _Type),
    (_NUMPY, "_reconstruct", _Array),
    (_NUMPY, "scalar", _Scalar),
    (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", _FromBuffer),
    (("torch._utils",), "_rebuild_tensor_v2", _Tensor),
    (("torch.storage",), "_load_from_bytes", _Storage),
    (("collections",), "OrderedDict", dict),  # hooks of a tensor; always empty
]


def _rows(found: Any) -> list[Boxes] | dict[str, Boxes]:
    if isinstance(found, dict) and KEY in found:
        found = found[KEY]
    if isinstance(found, dict):
        keys = {type(key) for key in found}
        if keys == {str}:
            return {name: _boxes(row, repr(name)) for name, row in found.items()}
        if keys == {int} and sorted(found) != list(range(len(found))):
            raise ValueError(f"its rows must be numbered from 0 to {len(found) - 1}")
        if keys <= {int}:
            found = [found[number] for number in range(len(found))]
    if not isinstance(found, list | tuple):
        raise ValueError(f"it must hold rows by number or by file name, not {type(found).__name__}")
    return [_boxes(row, str(number)) for number, row in enumerate(found)]


def _boxes(row: Any, name: str) -> Boxes:
    """One row as int32 [M, 4]."""
    plain = row.value if isinstance(row, _Array) else _plain(row)
    try:
        boxes = np.asarray(plain)
    except ValueError:  # lists of unequal lengths
        boxes = np.empty(1, object)
    if boxes.size == 0 and boxes.ndim <= 2:
        return np.empty((0, 4), np.int32)
    if boxes.shape == (4,):  # ORL's writer squeezes the row of one box
        boxes = boxes[None]
    is_whole = boxes.dtype.kind in "iu" or (boxes.dtype.kind == "f" and bool((boxes == np.rint(boxes)).all()))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not is_whole or bool((np.abs(boxes) >= 1e9).any()):
        raise ValueError(f"row {name} must hold boxes of four whole numbers")
    return boxes.astype(np.int32)


def _plain(row: Any) -> Any:
    """A row of lists, in which numbers may be NumPy's and boxes arrays."""
    if not isinstance(row, list | tuple):
        raise ValueError(f"a row must be a list or an array, not {type(row).__name__}")
    return [
        item.value
        if isinstance(item, _Array)
        else [part.value if isinstance(part, _Array) else part for part in item]
        if isinstance(item, list | tuple)
        else item
        for item in row
    ]


@contextmanager
def _limited_memory(size: int) -> Iterator[None]:
    """Bound the memory of this process while a pickle of `size` bytes is read."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    room = used + _ROOM_BYTES + _ROOM_PER_BYTE * size
    limits = [limit for limit in (room, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
