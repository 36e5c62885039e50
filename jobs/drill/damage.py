"""Damaged files, in process: the newest checkpoint of a run that died, or a photograph it will read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs.drill.lab import ACTIONS, Lab, Told, digest, proved, seconds_to_good, steps_of
from jobs.drill.results import Result
from univip.checkpoint import layout
from univip.data.images import ImageIndex
from univip.engine.trainer import Ending

_DIED_AT = 9  # data steps done; its checkpoints are those of 2, 4, 6 and 8, as far as they are kept

Damage = Callable[[Path, Path, random.Random], None]  # of the newest checkpoint; the one before


def _flip(newest: Path, before: Path, draws: random.Random) -> None:
    flip_bit(newest / draws.choice([layout.TENSORS, layout.MANIFEST]), draws)


def flip_bit(path: Path, draws: random.Random) -> None:
    """Any bit of a file becomes the other."""
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def _truncate(newest: Path, before: Path, draws: random.Random) -> None:
    path = newest / draws.choice([layout.TENSORS, layout.MANIFEST])
    content = path.read_bytes()
    path.write_bytes(content[: draws.randrange(len(content))])


def _remove(newest: Path, before: Path, draws: random.Random) -> None:
    (newest / draws.choice([layout.TENSORS, layout.MANIFEST])).unlink()


def _swap(newest: Path, before: Path, draws: random.Random) -> None:
    """One file is that of the checkpoint before."""
    name = draws.choice([layout.TENSORS, layout.MANIFEST])
    shutil.copy(before / name, newest / name)


def _make_stale(newest: Path, before: Path, draws: random.Random) -> None:
    """All files are those of the checkpoint before, as an old backup that was put back."""
    shutil.rmtree(newest)
    shutil.copytree(before, newest)


def _spoil_manifest(newest: Path, before: Path, draws: random.Random) -> None:
    path = newest / layout.MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    how = draws.randrange(5)
    if how == 0:
        document["data_step"] += 1
    elif how == 1:
        document["files"] = {}
    elif how == 2:
        del document[draws.choice(sorted(document))]
    elif how == 3:
        document["facts"]["guard"]["good_steps"] += 1
    text = json.dumps(document) if how < 4 else draws.choice(["", "[]", "null", "{", "\0" * 100])
    path.write_text(text, encoding="utf-8")


def _damaged(lab: Lab, number: int, draws: random.Random, *, kind: str, damage: Damage) -> Result:
    """The newest checkpoint is damaged between two attempts: the one before must be used."""
    run_dir = lab.copy(lab.cut_off(_DIED_AT), "damaged")
    checkpoints = run_dir / "checkpoints"
    before, newest = layout.data_steps(checkpoints)[-2:]
    damage(checkpoints / layout.name_of(newest), checkpoints / layout.name_of(before), draws)
    told = Told()
    ending = lab.train(run_dir, told)
    found = [record["data_step"] for record in told.of("corruption")]
    restored = told.of("restore")[0]["data_step"]
    steps = steps_of(told.records)
    result = Result(
        kind,
        number,
        trials=1,
        detected=int(newest in found),
        recovered=int(ending is Ending.DONE),
        false_actions=sum(len(told.of(each)) for each in ACTIONS) - (newest in found),
        seconds=[steps[0].time - told.records[0]["time"]],
        is_equal=digest(run_dir) == lab.calm(),
        **proved(run_dir, steps),
    )
    result.steps_lost += newest - before
    if restored != before:
        result.problems.append(f"data step {restored} was loaded, where {before} is the newest good one")
    return result


def pointer(lab: Lab, number: int, draws: random.Random) -> Result:
    """The file `latest` is gone, or names a checkpoint that is old or was never there."""
    run_dir = lab.copy(lab.cut_off(_DIED_AT), "pointer")
    path = run_dir / "checkpoints" / layout.LATEST
    newest = layout.data_steps(run_dir / "checkpoints")[-1]
    path.write_text(draws.choice(["", layout.name_of(0), layout.name_of(999), "../.."]), encoding="utf-8")
    if draws.random() < 0.3:
        path.unlink()
    told = Told()
    ending = lab.train(run_dir, told)
    restored = told.of("restore")[0]["data_step"]
    steps = steps_of(told.records)
    return Result(
        "file:pointer",
        number,
        trials=1,
        recovered=int(ending is Ending.DONE),
        false_actions=sum(len(told.of(each)) for each in ACTIONS),
        seconds=[steps[0].time - told.records[0]["time"]],
        is_equal=digest(run_dir) == lab.calm(),
        problems=[] if restored == newest else [f"data step {restored} was loaded instead of {newest}"],
        **proved(run_dir, steps),
    )


def photograph(lab: Lab, number: int, draws: random.Random) -> Result:
    """A photograph is cut off, emptied, overwritten or gone: another takes its place, and the run says so."""
    root = lab.runs / f"photographs-{number:06d}"
    index = ImageIndex.open(lab.boxes / "images.arrow")
    shutil.copytree(lab.photographs, root)
    path = root / index.path(draws.randrange(len(index)))
    content = path.read_bytes()
    spoilt = draws.choice([content[: len(content) // 3], b"", draws.randbytes(len(content)), None])
    path.unlink() if spoilt is None else path.write_bytes(spoilt)
    run_dir = lab.in_process("photograph", f"data.root='{root}'")
    told = Told()
    ending = lab.train(run_dir, told)
    failed = {record.get("path", "") for record in told.of("image_failed")}
    steps = steps_of(told.records)
    return Result(
        "photograph",
        number,
        trials=1,
        detected=int(len(failed) == 1),
        recovered=int(ending is Ending.DONE),
        false_actions=sum(len(told.of(each)) for each in ACTIONS if each != "image_failed"),
        seconds=seconds_to_good(steps, [record["time"] for record in told.of("image_failed")[:1]]),
        **proved(run_dir, steps),
    )


bit_flip = partial(_damaged, kind="file:bitflip", damage=_flip)
truncated = partial(_damaged, kind="file:truncated", damage=_truncate)
missing = partial(_damaged, kind="file:missing", damage=_remove)
swapped = partial(_damaged, kind="file:swapped", damage=_swap)
stale = partial(_damaged, kind="file:stale", damage=_make_stale)
manifest = partial(_damaged, kind="file:manifest", damage=_spoil_manifest)
