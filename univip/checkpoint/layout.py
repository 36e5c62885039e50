"""The checkpoint format.

    checkpoints/
      step-000012000/          named by data step; appears by a rename, so it is whole or absent
        state.safetensors      every tensor of the training state
        manifest.json          facts, for each file its size, SHA-256 and tensors; its own SHA-256; constant
        HEALTHY                added once enough good steps followed; only then a rollback may return here
        PINNED                 added while something else needs it, which it names; it is then never pruned
      latest                   text file with the name of the newest
      abandoned/<why>/...      the future a rollback turned away from, and damaged checkpoints
      .tmp-*                   a write in progress or cut off; never read

No pickle: tensors are safetensors, everything else is JSON. This module reads the format without torch, so
`univip digest` answers at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from univip.errors import CheckpointError, ConfigError

FORMAT = 1
TENSORS = "state.safetensors"
MANIFEST = "manifest.json"
HEALTHY = "HEALTHY"
PINNED = "PINNED"
LATEST = "latest"
ABANDONED = "abandoned"
DAMAGED = "damaged"  # a folder in it
TEMPORARY_PREFIX = ".tmp-"
_NAME = re.compile(r"step-(\d{9,})")
_CHUNK_BYTES = 1 << 24  # after each, a thread may have to wait for the interpreter


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    size_bytes: int
    sha256: str
    tensors: dict[str, dict[str, Any]]  # name -> {"dtype", "shape"}


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint that is not a tensor.

    Attributes:
        facts: The JSON part of the training state.
        line: Number of rollbacks before it was written; tells a checkpoint of an abandoned future from
            one after it.
    """

    format: int
    data_step: int
    step: int
    world_size: int
    config_hash: str
    line: int
    versions: dict[str, str]
    facts: dict[str, Any]
    files: dict[str, FileEntry]

    def to_json(self) -> str:
        """The manifest as JSON with sorted keys, and a checksum of its own."""
        document = asdict(self)
        return json.dumps({**document, "sha256": _seal(document)}, indent=1, sort_keys=True)


def name_of(data_step: int) -> str:
    """Directory name of the checkpoint at a data step."""
    return f"step-{data_step:09d}"


def data_steps(directory: Path) -> list[int]:
    """Data steps of the checkpoints in `checkpoints/`, ascending; nothing else there counts."""
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def read_manifest(checkpoint: Path) -> Manifest:
    """Read the manifest of one checkpoint.

    Raises:
        CheckpointError: If it is missing, not JSON, or damaged.
        ConfigError: If it is whole and of another format. Passing over it would throw good work away.
    """
    path = checkpoint / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("sha256") != _seal(raw):
            raise ValueError("it does not match its own checksum")
        if raw["format"] != FORMAT:
            raise ConfigError(
                f"the checkpoint's format must be {FORMAT}, but is {raw['format']}.",
                where=str(path),
                fix="resume with the version of this software that wrote it",
            )
        files = {name: FileEntry(**entry) for name, entry in raw.pop("files").items()}
        manifest = Manifest(**raw, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the manifest cannot be read: {error}", where=str(path)) from error
    return manifest


def verify(checkpoint: Path) -> Manifest:
    """Check every byte of a checkpoint against its manifest.

    Raises:
        CheckpointError: Naming the file whose size or checksum differs.
        ConfigError: If it is of another format.
    """
    manifest = read_manifest(checkpoint)
    for name, entry in manifest.files.items():
        path = checkpoint / name
        try:
            size_bytes, sha256 = checksum(path)
        except OSError as error:
            raise CheckpointError(f"a file cannot be read: {error}", where=str(path)) from error
        if (size_bytes, sha256) != (entry.size_bytes, entry.sha256):
            raise CheckpointError(
                f"the file does not match its checksum ({size_bytes} bytes, {entry.size_bytes} expected)",
                where=str(path),
            )
    return manifest


def _seal(document: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content, however it is laid out."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def tensor_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Header of a safetensors file and the offset of its data: 8 bytes length, JSON, bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def digest(checkpoint: Path) -> str:
    """One SHA-256 over names, dtypes, shapes and bytes of every tensor, in order of name.

    Equal digests mean equal training states, whichever path led there.
    """
    path = checkpoint / TENSORS
    total = hashlib.sha256()
    header, start = tensor_header(path)
    with path.open("rb") as file:
        for name in sorted(header):
            entry = header[name]
            begin, end = entry["data_offsets"]
            total.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            file.seek(start + begin)
            remaining = end - begin
            while remaining:
                chunk = file.read(min(_CHUNK_BYTES, remaining))
                if not chunk:
                    raise CheckpointError("the tensor file is shorter than its header says", where=str(path))
                total.update(chunk)
                remaining -= len(chunk)
    return total.hexdigest()
