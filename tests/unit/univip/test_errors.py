"""Errors are three lines, here and after a journey between processes."""

from __future__ import annotations

import pickle

import pytest

from univip.errors import ConfigError, ImageError, UnivipError, override


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("`a` must be 1, but is 2.", where="the command line", fix="a=1"),
        ImageError("corrupt", "the file ends early", where="x.jpg"),
    ],
)
def test_an_error_keeps_its_lines_through_another_process(error: UnivipError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_lines_without_content_are_left_out() -> None:
    assert str(ConfigError("what", fix="how")) == "what\n  fix:   how"


@pytest.mark.parametrize(
    ("value", "typed"),
    [("/data/coco", "a=/data/coco"), (7, "a=7"), ("/my data", "\"a='/my data'\""), ("", "\"a=''\"")],
)
def test_an_override_is_quoted_where_it_must_be(value: object, typed: str) -> None:
    assert override("a", value) == typed
