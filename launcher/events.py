"""What happened to a run, in words: the same in `status`, `--wait` and `logs`.

Problems are what a person wants to hear of wherever a run is watched; the rest is told by `logs` alone.
"""

from __future__ import annotations

from typing import Any

from monitoring.journal import Record

# Kind of a record -> how it is told.
_PROBLEMS = {
    "skip": "skipped data step {data_step}: {reason} in {where}",
    "spike": "spike at data step {data_step}: {what}",
    "collapse": "the embeddings collapse: their spread is {embedding_std}, 1 is healthy",
    "rollback": "rolled back to data step {target}: {reason} in {where}",
    "restart": "new round of workers: {cause}; {message}",
    "straggler": "rank {slowest} takes {ratio} times as long as the others",
    "preflight": "node {host} failed its pre-flight: {what}",
    "capsule": "bad data step {data_step} cannot be replayed: {what}",
    "checkpoint": "checkpoint of data step {data_step} could not be written: {what}",
    "corruption": "damaged checkpoint {checkpoint}",
    "image_failed": "unusable image {path}: {reason}",
}
_EVENTS = {
    "attempt": "attempt {attempt} began: {stage} on {host}",
    "round": "round {round} of attempt {attempt} began: rank {rank} of {world_size} on {host}",
    "restore": "rank {rank} went on from {checkpoint}, from {source}",
    "stall": "rank {rank} has been in phase {phase} of data step {data_step} for long",
    "sample_log": "the sample log could not be written: {what}",
    "cadence": "a checkpoint every {every_steps} data steps from now on",
    "gpu_error": "GPU {gpu} of {host}: {what}",
    "shard": "shard {shard}: {state}",
    "proposals": "shard {shard}: {images_done}/{images} images, {boxes} boxes",
    "evaluate": "evaluated with {protocol} the checkpoint of data step {checkpoint_data_step}",
    "stop": "rank {rank} ended: {cause}",
    "run": "attempt {attempt} ended: {state}",
    "dropped": "{records} records of the journal were lost",
}
_ENDS = ("done", "stopped", "failed")  # the states of kind `run` that end something


def is_problem(record: Record) -> bool:
    """Whether the record tells of something that went wrong."""
    return record["kind"] in _PROBLEMS and record.get("outcome") != "success"


def problem_in_words(record: Record) -> str:
    """What `is_problem`, in one line."""
    return _in_words(_PROBLEMS, record)


def event_in_words(record: Record) -> str:
    """Any other record in one line; empty if it is not worth one."""
    if record["kind"] not in _EVENTS or (record["kind"] == "run" and record.get("state") not in _ENDS):
        return ""
    return _in_words(_EVENTS, record)


def _in_words(templates: dict[str, str], record: Record) -> str:
    words = templates[record["kind"]].format_map(_Unknown(record))
    return words.partition("\n")[0].removesuffix("; ")  # of a node that left no word


class _Unknown(dict[str, Any]):
    """A record whose missing fields read as a question mark."""

    def __missing__(self, key: str) -> str:
        return "?"
