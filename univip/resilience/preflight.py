"""The pre-flight: questions with known answers, put to a device, its memory, the disk and the network.

A GPU that adds wrongly, memory that forgets and a mount that has gone stale rarely say so themselves: they
spoil gradients or hang a job of many nodes. Every question here has an answer that is known in closed form
and exact in the arithmetic it is put to, whatever the order of additions, so any difference is a fault and
none can be a false alarm. Each function returns a sentence about what is wrong, or None.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from univip.engine.distributed import Group

_REPEATS = 3
_EDGE = {"cuda": 2048, "cpu": 128}  # of the matrices
_SIGNS = 256  # terms of a bf16 product: every partial sum of so many ones is a whole number it can hold
_BLOCK_BYTES = {"cuda": 256 * 2**20, "cpu": 2**20}
_CPU_BYTES = 4 * 2**20
_MOST_GPU_BYTES = 16 * 2**30  # and a quarter of what is free at most: other processes may share the GPU
_DISK_BYTES = 2**18
_SUM_LENGTH = 2**16


def look(device: torch.device, folder: Path, *, is_broken: bool = False) -> str:
    """Everything that one node can be asked without the others.

    Args:
        device: Whose arithmetic and memory are tried.
        folder: Where a file is written, read and removed.
        is_broken: Spoil one number, so that a drill has a device that computes wrongly.

    Returns:
        What is wrong, and with which device; empty if nothing is.
    """
    questions: dict[str, Callable[[], str | None]] = {
        str(device): lambda: wrong_product(device, is_broken=is_broken) or wrong_memory(device),
        "disk": lambda: wrong_disk(folder),
    }
    for whom, question in questions.items():
        try:
            what = question()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is the answer
            what = f"{type(error).__name__}: {error}".splitlines()[0]
        if what:
            return f"{whom}: {what}"
    return ""


def wrong_product(device: torch.device, *, is_broken: bool = False) -> str | None:
    """Whether matrix products in fp32 and bf16 are right, to the last bit.

    The numbers are small and whole, and exact in TF32 as well.
    """
    for key in range(_REPEATS):
        for dtype, known_product in ((torch.float32, _of_sums), (torch.bfloat16, _of_signs)):
            left, right, known = known_product(_EDGE[device.type], key)
            product = (left.to(device, dtype) @ right.to(device, dtype)).cpu()
            if is_broken:
                product[0, 0] += 1
            if wrong := int((product != known.to(dtype)).sum()):
                name = str(dtype).removeprefix("torch.")
                return f"{wrong:,} of {known.numel():,} numbers of a {name} matrix product are wrong"
    return None


def wrong_memory(device: torch.device) -> str | None:
    """Whether memory gives back what was written to it, every bit once as 0 and once as 1."""
    num_bytes = _CPU_BYTES
    if device.type == "cuda":
        num_bytes = min(torch.cuda.mem_get_info(device)[0] // 4, _MOST_GPU_BYTES)
    block_bytes = _BLOCK_BYTES[device.type]
    pattern = torch.arange(block_bytes // 4, dtype=torch.int32, device=device)
    blocks: list[Tensor] = []
    try:
        for number in range(num_bytes // block_bytes):
            blocks.append(pattern ^ number)
    except torch.OutOfMemoryError:  # somebody else was faster; what there is will do
        pass
    for flip in (0, -1):  # all bits
        for number, block in enumerate(blocks):
            if wrong := int((block != pattern ^ number ^ flip).sum()):
                return f"{wrong:,} of {block.numel():,} words of memory are not what was written"
            block.bitwise_not_()
    return None


def wrong_disk(folder: Path) -> str | None:
    """Whether a file can be written, made durable and read again, from the disk where that can be asked for.

    A full disk is no fault of a node: who writes a checkpoint tells of it.
    """
    data = os.urandom(_DISK_BYTES)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            is_same = file.read() == data
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return None
        return f"the run directory cannot be written and read: {error.strerror}"
    return None if is_same else "a file does not hold what was written to it"


def wrong_sum(group: Group) -> str | None:
    """Whether the sum over all ranks is right on this one.

    It finds a network or a library that changes numbers, and a rank that others cannot reach (the collective
    then fails or times out). It cannot tell whose numbers were wrong: the rank that sees it is named, and the
    fault may lie on any way to it.

    Args:
        group: The ranks; all of them ask at the same time.
    """
    if group.size == 1:
        return None
    generator = torch.Generator().manual_seed(group.size)
    rows = torch.randint(-1000, 1001, (group.size, _SUM_LENGTH), generator=generator)
    numbers = rows[group.rank].to(group.device, torch.float32)
    group.sum_(numbers)
    wrong = int((numbers.cpu() != rows.sum(0)).sum())
    return f"{wrong:,} of {_SUM_LENGTH:,} sums over {group.size} ranks are wrong" if wrong else None


def _of_sums(edge: int, key: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices [E, E] of whole numbers up to 30, and their product.

    With A = x_i + y_k and B = p_k + q_j: sum_k A B = x_i sum(p) + E x_i q_j + sum(y p) + q_j sum(y).
    """
    generator = torch.Generator().manual_seed(key)
    x, y, p, q = torch.randint(-15, 16, (4, edge), generator=generator)
    known = edge * torch.outer(x, q) + (x * p.sum())[:, None] + q * y.sum() + (y * p).sum()
    return x[:, None] + y, p[:, None] + q, known


def _of_signs(edge: int, key: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices [E, T] and [T, E] of ones with signs, and their product, which is 128 with signs.

    With A = s_i t_k and B = t_k w_k r_j: sum_k A B = s_i r_j sum(w).
    """
    generator = torch.Generator().manual_seed(key)
    s, r = torch.randint(0, 2, (2, edge), generator=generator) * 2 - 1
    t = torch.randint(0, 2, (_SIGNS,), generator=generator) * 2 - 1
    w = torch.ones(_SIGNS, dtype=torch.int64)
    w[torch.randperm(_SIGNS, generator=generator)[: _SIGNS // 4]] = -1
    return torch.outer(s, t), torch.outer(t * w, r), torch.outer(s, r) * w.sum()
