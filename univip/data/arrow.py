"""Arrow files as the index and the proposals are kept: one memory-mapped record batch under a named format.

A file appears whole or not at all, and says in its metadata what it is, so that a foreign or cut file is
refused with a sentence instead of read as something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from univip.atomic import replacing
from univip.errors import DataError

_FORMAT = "univip.format"
_FIX = "remove it and submit the same request again"


def write(path: Path, batch: pa.RecordBatch, *, format: str, metadata: Mapping[str, str]) -> None:
    """Write one record batch; equal batches and metadata give equal bytes.

    Args:
        path: The file to create or replace.
        batch: The rows.
        format: Name and version of the layout, such as `univip-images/1`.
        metadata: Facts about the rows, kept in the schema.
    """
    named: dict[str, str] = {_FORMAT: format, **metadata}
    schema = batch.schema.with_metadata(named)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def read(path: Path, *, format: str) -> tuple[pa.RecordBatch, dict[str, str]]:
    """Memory-map one record batch.

    Raises:
        DataError: If the file is absent, damaged or of another format.
    """
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
            found = metadata.pop(_FORMAT, "unknown")
            if found != format or reader.num_record_batches != 1:
                raise DataError(
                    f"file must have the format `{format}`, but has `{found}`.",
                    where=str(path),
                    fix=_FIX,
                )
            batch = reader.get_batch(0)
            batch.validate()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"`{path.name}` cannot be read: {error}.", where=str(path), fix=_FIX) from error
    return batch, metadata
