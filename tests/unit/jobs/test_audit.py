"""The audit of a run whose log, ledger and checkpoints are made up, against a plan that is real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs import proposals
from jobs.audit import audit
from jobs.config import Config, RunHeader, RunKind, load, store
from jobs.reader import make_reader
from univip.config import DataConfig, DataFormat, ProposalsConfig, SearchMode, TrainConfig, ViewsConfig
from univip.data.marks import add_marks, mark_of_samples, mark_of_views
from univip.data.plan import SamplePlan
from univip.data.scan import scan
from univip.engine.sample_log import FILE_NAME, Marks, SampleLog, read
from univip.errors import CheckpointError, ConfigError, DataError
from univip.observe import NullObserver
from univip.resilience.ledger import Ledger

IMAGES, BATCH, DONE = 5, 3, 10  # six epochs

Log = Callable[[Iterable[int]], None]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A training run at data step `DONE`, its boxes beside it."""
    (tmp_path / "data").mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(tmp_path / "data" / f"{number}.png")
    config = Config(
        data=DataConfig(format=DataFormat.folder, root=str(tmp_path / "data")),
        proposals=ProposalsConfig(mode=SearchMode.single, min_sizes=[16], processes=1),
        views=ViewsConfig(scene_size=32, instance_size=16, min_overlap=16),
        train=TrainConfig(global_batch=BATCH),
    )
    fingerprint = scan(config.data).fingerprint
    boxes, train = tmp_path / "proposals-1", tmp_path / "univip-1"
    for directory, kind, beside in ((boxes, RunKind.proposals, ""), (train, RunKind.train, boxes.name)):
        directory.mkdir()
        store(config, RunHeader(directory.name, kind, fingerprint, IMAGES, beside), directory)
    proposals.prepare(config, boxes)
    proposals.run_shard(config, boxes, 0, NullObserver())
    proposals.merge(config, boxes)
    (train / "checkpoints" / f"step-{DONE:09d}").mkdir(parents=True)
    return train


@pytest.fixture
def log(run_dir: Path) -> Log:
    """Logs data steps as the trainer would, with the samples and views that the reader makes."""
    reader = make_reader(load(run_dir), run_dir)
    plan = SamplePlan(IMAGES, BATCH, reader.seed)

    def write(data_steps: Iterable[int]) -> None:
        samples = SampleLog(run_dir / FILE_NAME)
        samples.start(0)
        for data_step in data_steps:
            epochs, rows = plan.batch(data_step)
            samples.add(data_step, Marks(*reader.batch(epochs, rows).marks))
        samples.flush()

    return write


def test_a_calm_run_is_proved(run_dir: Path, log: Log) -> None:
    log(range(DONE))

    found = audit(run_dir, views=2)

    assert found["is_proved"]
    assert (found["applied"], found["lost"], found["lost_by_epoch"]) == (DONE, [], {})
    assert (found["whole_epochs"], found["views_checked"], found["views_wrong"]) == (6, 2, [])


def test_steps_beyond_the_newest_checkpoint_are_not_judged(run_dir: Path, log: Log) -> None:
    log(range(DONE + 3))

    assert audit(run_dir)["data_steps"] == DONE


def test_what_the_ledger_left_out_is_lost_with_its_reason_and_counted_by_epoch(
    run_dir: Path, log: Log
) -> None:
    ledger = Ledger(run_dir / "ledger.jsonl")
    ledger.append("skip", data_step=1, what="the loss is not finite")
    ledger.append("rollback", target=4, at=6, window=[5, 7], what="a weight is not finite")
    log(data_step for data_step in range(DONE) if data_step not in (1, 5, 6))

    found = audit(run_dir)

    assert found["is_proved"]
    assert found["lost"] == [
        {"start": 1, "stop": 2, "why": "skipped: the loss is not finite"},
        {"start": 5, "stop": 7, "why": "rollback at 6: a weight is not finite"},
    ]
    places = [place for data_step in (1, 5, 6) for place in range(BATCH * data_step, BATCH * data_step + 3)]
    assert found["lost_by_epoch"] == Counter(place // IMAGES for place in places)
    assert found["whole_epochs"] == 6 - len(found["lost_by_epoch"])


def test_a_step_that_nobody_left_out_is_unexplained(run_dir: Path, log: Log) -> None:
    log(data_step for data_step in range(DONE) if data_step != 4)

    found = audit(run_dir)

    assert not found["is_proved"]
    assert (found["unexplained"], found["lost"]) == ([4], [])


def test_other_samples_or_views_than_planned_are_wrong(run_dir: Path, log: Log) -> None:
    log(range(DONE))
    right = read(run_dir / FILE_NAME)
    samples = SampleLog(run_dir / FILE_NAME)
    samples.start(DONE - 2)
    samples.add(DONE - 2, right[DONE - 2]._replace(samples=7))
    samples.add(DONE - 1, right[DONE - 1]._replace(views=7))
    samples.flush()

    found = audit(run_dir, views=DONE)

    assert (found["is_proved"], found["applied"]) == (False, DONE - 1)
    assert (found["wrong"], found["views_wrong"]) == ([DONE - 2], [DONE - 1])


def test_a_mark_is_that_of_the_planned_image_and_of_the_shown_one(run_dir: Path) -> None:
    reader = make_reader(load(run_dir), run_dir)
    (run_dir.parent / "data" / "2.png").write_text("no picture")
    row = next(row for row in range(IMAGES) if reader.index.path(row) == "2.png")
    epochs, rows = np.zeros(1, np.int64), np.array([row])

    batch = reader.batch(epochs, rows)

    [failure], shown = batch.failures, reader.sample(0, row)
    assert failure.path == "2.png"
    assert batch.marks[0] == mark_of_samples(epochs, reader.index.ids[rows])
    assert batch.marks[1] == add_marks(
        [mark_of_views(0, int(batch.ids[0]), shown.views.scenes, shown.views.boxes)]
    )


def test_what_cannot_be_audited_is_refused(run_dir: Path, log: Log) -> None:
    with pytest.raises(DataError, match="must have a sample log"):
        audit(run_dir)
    log(range(DONE))
    with pytest.raises(ConfigError, match="must be a training run"):
        audit(run_dir.parent / "proposals-1")
    (run_dir / "checkpoints" / f"step-{DONE:09d}").rmdir()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        audit(run_dir)
