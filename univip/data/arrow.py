"""Arrow files as the index and the proposals are kept: memory-mapped record batches under a named format.

A file appears whole or not at all, and says in its metadata what it is, so that a foreign or cut file is
refused with a sentence instead of read as something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from univip.atomic import replacing
from univip.errors import DataError

_FORMAT = "univip.format"
FIX = "remove it and submit the same request again"


def write(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    format: str,
    metadata: Mapping[str, str],
) -> None:
    """Write record batches as they come; equal batches and metadata give equal bytes.

    Args:
        path: The file to create or replace.
        schema: Of every batch.
        batches: The rows.
        format: Name and version of the layout, such as `univip-images/1`.
        metadata: Facts about the rows, kept in the schema.
    """
    named: dict[str, str] = {_FORMAT: format, **metadata}
    schema = schema.with_metadata(named)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def read(path: Path, *, format: str) -> tuple[list[pa.RecordBatch], dict[str, str]]:
    """Memory-map the record batches of a file and their metadata.

    Raises:
        DataError: If the file is absent, damaged or of another format.
    """
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
            found = metadata.pop(_FORMAT, "unknown")
            if found != format:
                raise DataError(
                    f"file must have the format `{format}`, but has `{found}`.", where=str(path), fix=FIX
                )
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"`{path.name}` cannot be read: {reason}.", where=str(path), fix=FIX) from error
    return batches, metadata
