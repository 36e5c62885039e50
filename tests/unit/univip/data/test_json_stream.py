"""JSON taken value by value is what `json` reads as a whole, and what is none is refused with its place."""

from __future__ import annotations

import io
import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from univip.data import json_stream
from univip.data.json_stream import JsonStream

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
chunk_sizes = st.integers(1, 40)


def stream(text: str | bytes) -> JsonStream:
    return JsonStream(io.BytesIO(text.encode() if isinstance(text, str) else text))


def read_object(text: str) -> dict[str, Any]:
    values = stream(text)
    return {key: values.value() for key in values.fields()}


def read_list(text: str) -> list[Any]:
    values = stream(text)
    found = list(values.items())
    values.take("")
    return found


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5), st.sampled_from([None, 1]), chunk_sizes)
def test_the_keys_of_an_object_are_read_as_json_reads_them(
    value: dict[str, Any], indent: int | None, chunk: int
) -> None:
    with mock.patch.object(json_stream, "_CHUNK_BYTES", chunk):
        assert read_object(" \n" + json.dumps(value, indent=indent, ensure_ascii=chunk % 2 == 0)) == value


@given(st.lists(json_values, max_size=6), st.sampled_from([None, 1]), chunk_sizes)
def test_the_elements_of_a_list_are_read_as_json_reads_them(
    value: list[Any], indent: int | None, chunk: int
) -> None:
    with mock.patch.object(json_stream, "_CHUNK_BYTES", chunk):
        assert read_list(json.dumps(value, indent=indent, ensure_ascii=chunk % 2 == 0) + "\n") == value


@given(st.lists(json_values, min_size=1, max_size=6), chunk_sizes, st.data())
def test_a_cut_text_is_never_read_as_a_whole_one(value: list[Any], chunk: int, data: st.DataObject) -> None:
    text = json.dumps(value).encode()
    cut = data.draw(st.integers(0, len(text) - 1))

    with mock.patch.object(json_stream, "_CHUNK_BYTES", chunk), pytest.raises(ValueError, match="character"):
        read_list(text[:cut].decode())


def test_a_value_may_be_stepped_over() -> None:
    values = stream('{"a": [[1], {"b": "]"}], "c": {"d": "}"}, "e": 5}')
    found = {}
    for key in values.fields():
        if key == "e":
            found[key] = values.value()
        else:
            values.skip()

    assert found == {"e": 5}


def test_the_position_is_that_of_the_next_character() -> None:
    values = stream('{"a": [1, 2], "b": 3}')
    for key in values.fields():
        assert values.peek() == {"a": "[", "b": "3"}[key]
        assert values.position == {"a": 6, "b": 19}[key]
        values.skip()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must follow at character 0, not 'the end'"),
        ("{}", r"`\[` must follow"),
        ("[1 2]", "must follow at character 3, not '2'"),
        ("[1,]", "Expecting value at character 3"),
        ("[1] 2", "the end must follow at character 4"),
        ("[NaN]", "`NaN` is no number of JSON"),
        ("[-Infinity]", "`-Infinity` is no number of JSON"),
        ("[" + "[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "4300"),
        (b'["\xff"]', "invalid start byte"),
    ],
)
def test_what_is_no_list_is_refused_with_the_place(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_list(text)


@pytest.mark.parametrize("text", ["{1: 2}", '{"a" 1}', '{"a": 1,}', '{"a": 1', "{", '{"a": 1 "b": 2}'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="character"):
        read_object(text)


def grow(file: io.RawIOBase) -> int:
    """Bytes that were read of a text until it was given up."""
    with pytest.raises(ValueError, match="too long"):
        list(JsonStream(file).items())  # type: ignore[arg-type]
    return file.tell()


@pytest.mark.parametrize("start", [b'["', b"[[1"])
def test_a_value_without_end_does_not_fill_the_memory(start: bytes) -> None:
    limit = 1 << 16
    with (
        mock.patch.object(json_stream, "_MAX_VALUE_CHARS", limit),
        mock.patch.object(json_stream, "_CHUNK_BYTES", 1 << 10),
    ):
        assert grow(io.BytesIO(start + b",1" * limit * 4)) <= 4 * limit
