"""A pre-flight passes what is sound and says what is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from univip.engine.distributed import Group
from univip.resilience import preflight

CPU = torch.device("cpu")


@pytest.mark.parametrize("make", [preflight._of_sums, preflight._of_signs])
@pytest.mark.parametrize("key", range(3))
def test_the_known_product_is_that_of_whole_numbers(make: object, key: int) -> None:
    left, right, known = make(96, key)  # type: ignore[operator]

    assert (left.numpy() @ right.numpy() == known.numpy()).all()
    assert len(np.unique(known.numpy())) > 1


def test_no_partial_sum_leaves_the_numbers_that_the_arithmetic_can_hold() -> None:
    for make, dtype, largest in (
        (preflight._of_sums, torch.float32, 2**24),
        (preflight._of_signs, torch.bfloat16, 2**8),
    ):
        left, right, known = make(preflight._EDGE["cuda"], 0)
        assert int(left.abs().max() * right.abs().max()) * left.shape[1] <= largest
        for matrix in (left, right, known):
            assert torch.equal(matrix.to(dtype).to(torch.int64), matrix)


def test_a_sound_device_has_nothing_wrong(tmp_path: Path) -> None:
    assert preflight.look(CPU, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_number_is_seen_and_the_device_named(tmp_path: Path) -> None:
    what = preflight.look(CPU, tmp_path, is_broken=True)

    assert what == "cpu: 1 of 16,384 numbers of a float32 matrix product are wrong"


def test_a_driver_that_raises_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error\nwith many lines of advice")

    monkeypatch.setattr(preflight, "wrong_memory", fail)

    assert preflight.look(CPU, tmp_path) == "cpu: RuntimeError: CUDA error: uncorrectable ECC error"


def test_a_bit_that_does_not_change_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight.wrong_memory(CPU) is None
    flip = Tensor.bitwise_not_

    def flip_all_but_one(block: Tensor) -> Tensor:
        flip(block)
        block[7] ^= 1 << 30
        return block

    monkeypatch.setattr(Tensor, "bitwise_not_", flip_all_but_one)

    assert preflight.wrong_memory(CPU) == "1 of 262,144 words of memory are not what was written"


@pytest.mark.parametrize(
    ("code", "is_fault"),
    [(errno.EIO, True), (errno.EROFS, True), (errno.ENOSPC, False), (errno.EDQUOT, False)],
)
def test_a_disk_that_fails_is_a_fault_of_the_node_and_a_full_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_fault: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)

    what = preflight.wrong_disk(tmp_path)

    assert what == (
        f"the run directory cannot be written and read: {os.strerror(code)}" if is_fault else None
    )


def test_a_file_that_holds_something_else_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.pwrite(descriptor, b"damage", 1000))

    assert preflight.wrong_disk(tmp_path) == "a file does not hold what was written to it"


@pytest.mark.parametrize(("spoilt", "expected"), [(0, None), (3, "3 of 65,536 sums over 4 ranks are wrong")])
def test_a_sum_over_ranks_must_be_the_known_one(
    monkeypatch: pytest.MonkeyPatch, spoilt: int, expected: str | None
) -> None:
    sent: list[Tensor] = []

    def keep(group: Group, tensor: Tensor) -> None:
        sent.append(tensor.clone())

    monkeypatch.setattr(Group, "sum_", keep)
    for rank in range(4):
        preflight.wrong_sum(Group(rank, 4))
    total = torch.stack(sent).sum(0)
    total[:spoilt] += 1

    monkeypatch.setattr(Group, "sum_", lambda group, tensor: tensor.copy_(total))

    assert preflight.wrong_sum(Group(2, 4)) == expected


def test_a_rank_alone_asks_nobody() -> None:
    assert preflight.wrong_sum(Group()) is None
