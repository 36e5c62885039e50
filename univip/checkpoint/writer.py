"""Writing one checkpoint so that it exists whole or not at all.

Order matters: tensors, fsync; manifest, fsync; directory, fsync; rename; parent, fsync. A kill or a full disk
at any point leaves either the previous checkpoints alone or one more whole one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from univip.atomic import sync, write_text
from univip.checkpoint import layout
from univip.checkpoint.layout import FileEntry, Manifest
from univip.errors import CheckpointError


def write(
    directory: Path, tensors: Mapping[str, Tensor], manifest: Manifest, *, still_owner: Callable[[], bool]
) -> Manifest:
    """Write one checkpoint and point `latest` at it.

    Args:
        directory: The `checkpoints/` folder.
        tensors: Contiguous host tensors, none sharing storage.
        manifest: Everything else; its `files` is filled in here.
        still_owner: Asked just before the rename: False if a newer attempt or round owns the run.

    Returns:
        The manifest as written.

    Raises:
        OSError: If the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        CheckpointError: If this process no longer owns the run, or the checkpoint exists already.
    """
    directory.mkdir(exist_ok=True)
    if not layout.data_steps(directory):
        sync(directory.parent)  # where the name of a new folder is
    name = layout.name_of(manifest.data_step)
    temporary = directory / f"{layout.TEMPORARY_PREFIX}{name}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        path = temporary / layout.TENSORS
        _save_tensors(tensors, path)
        size_bytes, sha256 = layout.checksum(path)
        header, _ = layout.tensor_header(path)
        described = {key: {"dtype": entry["dtype"], "shape": entry["shape"]} for key, entry in header.items()}
        complete = replace(manifest, files={layout.TENSORS: FileEntry(size_bytes, sha256, described)})
        with (temporary / layout.MANIFEST).open("w", encoding="utf-8") as file:
            file.write(complete.to_json())
            file.flush()
            os.fsync(file.fileno())
        path.chmod((temporary / layout.MANIFEST).stat().st_mode)  # safetensors makes it private
        sync(path)
        sync(temporary)
        if not still_owner():
            raise CheckpointError(
                "a newer attempt owns this run; this one writes no more checkpoints", where=str(directory)
            )
        if (directory / name).exists():
            raise CheckpointError("the checkpoint exists already", where=str(directory / name))
        temporary.rename(directory / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(directory)
    write_text(directory / layout.LATEST, name)
    return complete


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensor file; the library reports a full disk as an error class of its own."""
    try:
        save_file(dict(tensors), str(path))
    except SafetensorError as error:  # wraps the system's error, whose number is in the text only
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
