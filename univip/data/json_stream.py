"""JSON read value by value, for files that are larger than the memory they deserve.

COCO's annotations are half a gigabyte and published proposals five. A caller walks down to the list it wants
and takes its elements one at a time; only one of them is ever held. Stricter than `json`: NaN and Infinity
are no numbers.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

_CHUNK_BYTES = 1 << 20
_MAX_VALUE_CHARS = 1 << 24  # of one value; what has no end must not fill the memory


def _no_number(text: str) -> Any:
    raise ValueError(f"`{text}` is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


class JsonStream:
    """A position in a JSON text, from where values are taken.

    Every method raises ValueError, with the place, where the text is not what the caller asks for.
    """

    def __init__(self, file: BinaryIO, *, encoding: str = "utf-8") -> None:
        """Start at the position of `file`; `latin-1` makes `position` an offset in bytes."""
        self._file = file
        self._decode = codecs.getincrementaldecoder(encoding)().decode
        self._start = file.tell()  # of `_text` in the file
        self._text = ""
        self._next = 0  # in `_text`

    @property
    def position(self) -> int:
        """Characters before the next one, counted from the start of the file."""
        return self._start + self._next

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._next < len(self._text):
                if self._text[self._next] not in " \t\r\n":
                    return self._text[self._next]
                self._next += 1
            if not self._fill():
                return ""

    def take(self, *expected: str) -> str:
        """Step over one of these characters and say which; an empty one stands for the end of the text."""
        found = self.peek()
        if found not in expected:
            names = " or ".join(f"`{name}`" if name else "the end" for name in expected)
            raise ValueError(f"{names} must follow at character {self.position}, not {found or 'the end'!r}")
        self._next += len(found)
        return found

    def value(self) -> Any:
        """Take the next value as `json` reads it."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._next)
            except RecursionError as error:
                raise ValueError(f"the value at character {self.position} is nested too deeply") from error
            except json.JSONDecodeError as error:
                if not self._fill():
                    raise ValueError(f"{error.msg} at character {self._start + error.pos}") from error
            else:
                # A number may go on behind what was read so far: 1 | .5, 1e | 5, 1e+ | 5.
                if len(self._text) - end > 2 or not self._fill():
                    self._next = end
                    return value

    def items(self) -> Iterator[Any]:
        """Take the next value, a list, element by element."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        yield self.value()
        while self.take(",", "]") == ",":
            yield self.value()

    def fields(self) -> Iterator[str]:
        """Take the next value, an object, key by key; the caller takes each value before the next key."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                self.take('"')
            key = self.value()
            self.take(":")
            yield key
            if self.take(",", "}") == "}":
                return

    def skip(self) -> None:
        """Step over the next value; a list may be of any length."""
        if self.peek() == "[":
            for _ in self.items():
                pass
        else:
            self.value()

    def _fill(self) -> bool:
        """Read on, forgetting what was taken; False at the end of the file."""
        if len(self._text) - self._next > _MAX_VALUE_CHARS:
            raise ValueError(f"the value at character {self.position} is too long")
        # At least as much as is there, so that a long value is not tried again too often.
        chunk = self._file.read(max(_CHUNK_BYTES, len(self._text) - self._next))
        text = self._decode(chunk, final=not chunk)
        if chunk:
            self._start, self._text, self._next = self.position, self._text[self._next :] + text, 0
        return bool(chunk)
