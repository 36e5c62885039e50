"""The picture of the last samples comes from beside the training, which never notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import pytest

from monitoring.web import facts
from univip.data.plan import SamplePlan

if TYPE_CHECKING:
    from conftest import Job, Runs

START = Callable[..., "Job"]


@pytest.mark.slow
def test_a_run_leaves_a_picture_and_without_it_has_the_same_digest(runs: Runs, start: START) -> None:
    run = runs.undisturbed(1)
    other = runs.new("unpictured", workers=1)
    (other.directory / facts.PICTURE).mkdir()  # in the way: nothing can be written there
    job = start(other)
    assert job.wait() == 0, job.stderr

    drawn = run.records("samples")
    assert [record["outcome"] for record in drawn] == ["success"]
    data = facts.picture(run.directory)
    assert data is not None
    with PIL.Image.open(run.directory / facts.PICTURE) as picture:
        assert picture.width > 500
        assert len(np.unique(np.asarray(picture.convert("RGB")))) > 100
    # What is said of it: the first samples of its data step, by the plan (image ids are rows plus 1 here).
    [record] = drawn
    epochs, rows = SamplePlan(16, 8, 0).batch(record["data_step"])
    assert record["epochs"] == epochs[:3].tolist()
    assert record["image_ids"] == (rows[:3] + 1).tolist()

    failed = other.records("samples")
    assert [(each["outcome"], "directory" in each["what"].lower()) for each in failed] == [("failure", True)]
    assert facts.picture(other.directory) is None
    assert other.digest() == run.digest()
    assert other.lost() == []
