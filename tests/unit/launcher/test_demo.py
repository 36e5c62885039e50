import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs.compose import compose
from jobs.requests import stages_of
from launcher import demo_data
from launcher.demo_data import make_demo_data
from launcher.demo_report import report
from launcher.plan import Plan, make_plan
from monitoring.journal import Journal
from univip.data.scan import scan
from univip.errors import DataError
from univip.evaluation.labels import read_labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo") / "demo-data")


def test_the_crops_are_a_coco_data_set_with_a_class_per_photograph(data: Path) -> None:
    config = compose([f"data.root='{data}'", "experiment=demo"])
    found = scan(config.data)

    assert len(found.rows) >= 100
    assert found.refused == {}
    for row in found.rows:
        assert min(row.width, row.height) >= 160
        assert max(row.width, row.height) <= 240
        with PIL.Image.open(data / row.path) as image:
            assert image.size == (row.width, row.height)
    labels = read_labels([data / "annotations" / "instances_train.json"], [row.id for row in found.rows])
    assert (labels.positive.sum(1) == 1).all()


def test_the_pixels_are_those_of_the_photograph(data: Path) -> None:
    """A crop of the astronaut is found again in the astronaut, up to JPEG."""
    [source] = [path for path in demo_data._photographs() if path.stem == "astronaut"]
    with PIL.Image.open(source) as opened:
        photograph = np.asarray(opened.convert("RGB"), dtype=np.float32)
    with PIL.Image.open(data / "train" / "astronaut-0.jpg") as opened:
        crop = np.asarray(opened, dtype=np.float32)
    height, width = crop.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(photograph.mean(2), (height, width))
    corners = np.abs(windows[:, :, ::16, ::16] - crop.mean(2)[::16, ::16]).mean((2, 3))

    y, x = np.unravel_index(corners.argmin(), corners.shape)

    assert np.abs(photograph[y : y + height, x : x + width] - crop).mean() < 4


def test_cutting_twice_changes_nothing(data: Path, tmp_path: Path) -> None:
    again = make_demo_data(tmp_path / "demo-data")

    documents = [
        json.loads((root / "annotations" / "instances_train.json").read_text()) for root in (data, again)
    ]
    assert documents[0] == documents[1]
    before = (data / "train" / "moon-3.jpg").stat().st_mtime_ns
    assert make_demo_data(data) == data
    assert (data / "train" / "moon-3.jpg").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo-data"]


def test_without_photographs_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "_PHOTOGRAPHS", ("absent.png",))

    with pytest.raises(DataError, match="scikit-image must bring at least 4"):
        make_demo_data(tmp_path / "demo-data")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def plan(data: Path, tmp_path: Path) -> Plan:
    return make_plan(
        "pipeline", compose([f"data.root='{data}'", "experiment=demo", f"paths.runs='{tmp_path}'"])
    )


def test_the_summary_counts_what_the_files_say(plan: Plan) -> None:
    """Ten data steps: a bad value at 6 goes back to 4 and jumps over 5 and 6; a kill after 8 repeats 8."""
    plan.run_dir.mkdir()
    with Journal(plan.run_dir) as journal:
        images = 0

        def steps(first: int, last: int, applied: int) -> None:
            nonlocal images
            for done in range(first, last + 1):
                images += 32
                journal.record("step", data_step=done, step=applied + done - first, images=images)

        steps(1, 6, 1)
        fault = {"data_step": 6, "target": 4, "window_start": 5, "window_stop": 7}
        journal.record("rollback", reason="nonfinite", where="loss", **fault)
        journal.record("step", data_step=5, step=5, images=images + 32)
        images += 32
        steps(8, 8, 6)
        journal.record("restart", cause="killed")
        steps(8, 10, 6)
    results = plan.run_dir / "results"
    results.mkdir()
    measured = {"top1": 0.5, "feature_std": 0.25, "effective_rank": 12.0}
    (results / "evaluate.json").write_text(json.dumps({"trained": measured, "untrained": measured}))

    rows = dict(report(plan))

    assert rows["images"] == f"{plan.header.num_images} crops of photographs"
    assert rows["steps"] == "8 applied of 10 data steps, 32 images each"
    assert rows["rollback"].startswith("nonfinite loss at data step 6, back to 4: 2 steps discarded, ")
    assert rows["restart"].startswith("a worker ended (killed) after data step 8: 1 steps done again, ")
    assert rows["samples lost"].startswith("64 ")
    assert rows["samples repeated"] == "0"
    assert rows["kNN top-1"] == "0.5  (untrained network: 0.5)"
    assert rows["run directory"] == str(plan.run_dir)


def test_a_run_that_failed_early_still_has_a_summary(plan: Plan) -> None:
    plan.run_dir.mkdir()

    assert "run directory" in dict(report(plan))


def test_the_demo_is_a_whole_pipeline_on_two_workers(plan: Plan) -> None:
    assert plan.config.cluster.workers_per_node == 2
    expected = stages_of("pipeline", plan.header.id, plan.header.proposals)
    assert plan.request.stages == expected
