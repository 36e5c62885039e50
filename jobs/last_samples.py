"""The picture of the last samples that lies in the run directory, for the page and the report.

Drawn by the agent of the first node, a process that otherwise waits: whatever happens to a picture, no rank
has more to do, and not one bit of a run changes. A sample is a function of the seed and its place in the
plan, so it is made here a second time, from the data step behind the newest checkpoint. Once a minute at
most, in some tenths of a second of one core. A picture that cannot be drawn or written leaves a record.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.config import Config
from univip.atomic import remove_leftovers, replacing
from univip.checkpoint import layout
from univip.observe import Observer

EVERY_S = 60.0
NUM_SAMPLES = 3
_FIRST_POLL_S = 1.0  # until there is a checkpoint
_PATIENCE_S = 20.0  # at the end, for a picture that is being drawn: seconds at most unless storage hangs
_QUALITIES = (75, 50, 25)  # the first that is small enough


@contextmanager
def pictured(
    config: Config, run_dir: Path, observer: Observer, *, every_s: float = EVERY_S
) -> Iterator[None]:
    """Keep the picture of a run as new as its newest checkpoint, meanwhile.

    Args:
        config: Of the run.
        run_dir: The run directory.
        observer: Takes a record of the kind `samples` for each picture.
        every_s: Least time between two pictures.
    """
    ended = threading.Event()

    def watch() -> None:
        shown, pause_s = -1, _FIRST_POLL_S
        while not ended.wait(pause_s):
            try:
                newest = max(layout.data_steps(run_dir / "checkpoints"), default=-1)
                if newest in (-1, shown):
                    continue
                shown, pause_s = newest, every_s
                # What the step before the checkpoint saw; of a new run, what the first one sees.
                draw(config, run_dir, max(newest - 1, 0), observer)
            except Exception as error:  # noqa: BLE001 - nobody trains worse without a picture
                pause_s = every_s
                observer.record("samples", data_step=max(shown - 1, 0), outcome="failure", what=str(error))

    thread = threading.Thread(target=watch, name="last-samples", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_PATIENCE_S)


def draw(config: Config, run_dir: Path, data_step: int, observer: Observer) -> None:
    """Draw the first samples of a data step into the run directory.

    Raises:
        UnivipError: If no photograph can be read.
        OSError: If the picture cannot be written.
        ValueError: If it cannot be made small enough for the page.
    """
    # Loaded late: the agent is to start its workers first.
    import PIL.Image
    import torch

    from jobs.reader import make_reader
    from monitoring.web.facts import MAX_PICTURE_BYTES, PICTURE
    from univip.data.plan import SamplePlan
    from univip.data.sheet import draw_sheet

    start = time.thread_time()
    torch.set_num_threads(1)  # of this process: the cores belong to the ranks
    reader = make_reader(config, run_dir)
    epochs, rows = SamplePlan(len(reader.index), config.train.global_batch, reader.seed).batch(data_step)
    places = zip(epochs[:NUM_SAMPLES].tolist(), rows[:NUM_SAMPLES].tolist(), strict=True)
    samples = [reader.sample(epoch, row) for epoch, row in places]
    sheet = PIL.Image.fromarray(draw_sheet(reader, samples))
    for quality in _QUALITIES:
        encoded = io.BytesIO()
        sheet.save(encoded, "WEBP", quality=quality)
        if encoded.tell() <= MAX_PICTURE_BYTES:
            break
    else:
        raise ValueError(f"the picture of the samples has more than {MAX_PICTURE_BYTES} bytes")
    remove_leftovers(run_dir / PICTURE)  # of an agent that was killed
    with replacing(run_dir / PICTURE) as temporary:
        temporary.write_bytes(encoded.getvalue())
    observer.record(
        "samples",
        data_step=data_step,
        outcome="success",
        image_ids=[sample.image_id for sample in samples],
        epochs=[sample.epoch for sample in samples],
        seconds=time.thread_time() - start,
    )
