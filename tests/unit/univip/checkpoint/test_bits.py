"""Sums of bits against exact arithmetic of Python."""

from __future__ import annotations

import pytest
import torch

from univip.checkpoint.bits import sums_of_bits

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8)


def exact(tensor: torch.Tensor) -> int:
    """Sum of the bits of the elements modulo 2^bits; signed where an element is wider than a byte."""
    width = tensor.element_size()
    content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    elements = [content[at : at + width] for at in range(0, len(content), width)]
    total = sum(int.from_bytes(each, "little") for each in elements) % 2 ** (8 * width)
    return total - 2 ** (8 * width) if width > 1 and total >= 2 ** (8 * width - 1) else total


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sums_are_those_of_exact_arithmetic(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(513, 7, generator=generator) * 100).to(dtype)

    assert sums_of_bits({"values": values, "turned": values.t(), "none": values[:0]}) == {
        "values": exact(values),
        "turned": exact(values),
    }


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_flipped_bit_changes_the_sum(dtype: torch.dtype) -> None:
    values = torch.arange(3).to(dtype)
    before = sums_of_bits({"values": values})

    for byte in range(values.element_size()):
        for bit in range(8):
            flipped = values.clone()
            flipped[1:2].view(torch.uint8)[byte] ^= 1 << bit
            assert sums_of_bits({"values": flipped}) != before
