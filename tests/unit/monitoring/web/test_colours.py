"""Curves are told apart by people who do not see all colours, on light and on dark ground."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from monitoring.web import drawing

STYLE = Path(drawing.__file__).parent / "static" / "style.css"
# What is seen of linear RGB without one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHTS = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = [0.9505, 1.0, 1.089]
APART = 10.0  # CIE 1976; 2.3 is just noticed side by side


def schemes() -> list[tuple[str, ...]]:
    """Eight colours on light ground, then eight on dark."""
    found = re.findall(r"--series-(\d): (#[0-9a-f]{6})", STYLE.read_text(encoding="utf-8"))
    assert [int(number) for number, _ in found] == [*range(8), *range(8)]
    colours = tuple(colour for _, colour in found)
    return [colours[:8], colours[8:]]


def lab(colour: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of what is seen of a colour."""
    encoded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHTS[sight]) @ linear, 0, 1)
    ratio = np.array(TO_XYZ) @ seen / np.array(WHITE)
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("colours", schemes(), ids=["light", "dark"])
def test_eight_curves_are_told_apart(colours: tuple[str, ...], sight: str) -> None:
    for one, other in itertools.combinations(colours, 2):
        assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > APART, (one, other)


def test_the_report_draws_in_the_colours_of_the_page() -> None:
    assert schemes()[0] == drawing.COLOURS
