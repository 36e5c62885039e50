"""A bad step of a real, tiny run computed again: same bits, and the planted cause is found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from jobs import proposals, replay, train
from jobs.compose import compose
from jobs.config import RunHeader, RunKind, store
from jobs.replay_report import lines
from monitoring.journal import Journal, read
from univip.checkpoint import layout
from univip.engine.distributed import Group
from univip.engine.reporting import Totals
from univip.errors import CheckpointError, ConfigError, RollbackExhaustedError
from univip.observe import NullObserver

IMAGES = 8
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proposals run on photographs of coarse noise."""
    root = tmp_path_factory.mktemp("replay")
    (root / "data" / "annotations").mkdir(parents=True)
    (root / "data" / "train").mkdir()
    draws = np.random.default_rng(0)
    images = []
    for number in range(IMAGES):
        pixels = np.kron(draws.integers(0, 256, (5, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(root / "data" / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 80})
    document = {"images": images, "annotations": [], "categories": []}
    (root / "data" / "annotations" / "instances_train.json").write_text(json.dumps(document))
    config = compose(overrides(root))
    (root / "boxes").mkdir()
    proposals.prepare(config, root / "boxes")
    for shard in range(proposals.num_shards(config, root / "boxes")):
        proposals.run_shard(config, root / "boxes", shard, NullObserver())
    proposals.merge(config, root / "boxes")
    return root / "boxes"


def overrides(root: Path) -> list[str]:
    return [
        "debug=small",
        f"data.root={root / 'data'}",
        "data.split=train",
        "data.workers=0",
        "proposals.min_sizes=[16]",
        "proposals.processes=1",
        "views.min_overlap=16",
        "views.scene_size=32",
        "views.instance_size=32",
        "model.hidden_dim=16",
        "model.embedding_dim=8",
        "train.max_steps=8",
        "train.global_batch=4",
        "train.max_images_per_rank=2",
        "checkpoint.every_steps=2",
        "resilience.healthy_after_steps=1",
    ]


@pytest.fixture
def trained(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains a run to its end, with planted faults."""

    def run(plant: str, *more: str) -> Path:
        root = boxes.parent
        run_dir = root / f"run-{len(list(root.iterdir())):08d}"
        run_dir.mkdir()
        config = compose([*overrides(root), *more])
        index = proposals.prepare(config, run_dir)
        header = RunHeader(run_dir.name, RunKind.train, index.fingerprint, IMAGES, proposals="boxes")
        store(config, header, run_dir)
        monkeypatch.setenv("UNIVIP_PLANT", plant)
        with Journal(run_dir) as journal:
            train.train_rank(
                config,
                run_dir,
                group=Group(),
                observer=journal,
                stop_requested=lambda: False,
                still_owner=lambda: True,
                totals=Totals(),
                place={"attempt": 1, "round": 0},
                on_hang=pytest.fail,
            )
        return run_dir

    return run


def found_in(run_dir: Path, data_step: int, **options: Any) -> dict[str, Any]:
    found = replay.replay(run_dir, str(data_step), **options)
    json.dumps(found, allow_nan=False)
    assert lines(found)
    return found


def bad_inputs(found: dict[str, Any]) -> list[str]:
    return [each["name"] for each in found["finding"]["inputs"] if each.get("nonfinite")]


def test_a_nan_pixel_is_traced_to_its_image_and_the_first_convolution(trained: Train) -> None:
    run_dir = trained("nan:activation@5")

    found = found_in(run_dir, 5)

    assert found["same_bits"]
    assert found["finding"]["operation"].startswith("aten.convolution")
    assert found["finding"]["phase"] == "forward"
    assert bad_inputs(found) == ["views.scenes"]
    capsule = json.loads((run_dir / "anomalies" / "000000005" / "capsule.json").read_text())
    # The first image of each of the two micro-batches.
    assert found["images"] == capsule["ranks"][0]["image_ids"][::2]
    assert {"scene", "scene_instance"} <= set(found["terms"])
    assert (capsule["verdict"], capsule["attempt"], capsule["start"]["data_step"]) == ("skip", 1, 4)
    assert math.isnan(float(capsule["loss"]))


@pytest.mark.slow
def test_a_pixel_that_only_bf16_cannot_hold_is_told_apart_by_computing_in_float32(trained: Train) -> None:
    run_dir = trained("overflow:pixel@5", "train.precision=bf16")

    in_bf16, in_fp32 = found_in(run_dir, 5), found_in(run_dir, 5, float32=True)

    assert in_bf16["same_bits"]
    assert in_bf16["finding"]["operation"].startswith("aten._to_copy")
    assert bad_inputs(in_bf16) == []
    (scenes,) = (each for each in in_bf16["finding"]["inputs"] if each["name"] == "views.scenes")
    assert scenes["max"] == pytest.approx(3.4e38)
    assert in_fp32["same_bits"] is None
    # There the number itself is no trouble; its square is, in the normalisation.
    assert not in_fp32["finding"]["operation"].startswith("aten._to_copy")
    assert in_fp32["images"] == in_bf16["images"]


@pytest.mark.slow
def test_a_poisoned_weight_is_named(trained: Train) -> None:
    found = found_in(trained("nan:parameter@5"), 5)

    assert found["same_bits"]
    assert found["verdict"]["where"] == "state"
    assert [name for name in bad_inputs(found) if name.startswith("online.backbone")]
    assert [each["name"] for each in found["state"]] == bad_inputs(found)


@pytest.mark.slow
def test_a_loss_and_a_gradient_gone_bad_are_traced_to_their_operation(trained: Train) -> None:
    run_dir = trained("nan:loss@3,nan:gradient@5")

    loss, gradient = found_in(run_dir, 3), found_in(run_dir, 5)

    assert loss["same_bits"]
    assert gradient["same_bits"]
    assert (loss["finding"]["phase"], loss["finding"]["module"]) == ("forward", "")
    assert bad_inputs(loss) == []
    assert gradient["finding"]["phase"] == "reduce"
    assert bad_inputs(gradient)[0].startswith("gradient of online.")


@pytest.mark.slow
def test_a_persistent_spike_is_replayed_from_before_it_began(trained: Train) -> None:
    limits = ["resilience.spike_window=4", "resilience.max_consecutive_spikes=2"]
    run_dir = trained("spike:loss@5,spike:loss@6", *limits)

    found = found_in(run_dir, 6)

    assert found["same_bits"]
    assert (found["start"], found["steps_again"]) == ("step-000000004", 2)
    assert found["replayed"]["reason"] == "spike"
    assert found["finding"] is None


@pytest.mark.slow
def test_an_embedding_of_length_zero_is_no_nan_but_a_spike_of_the_gradient(trained: Train) -> None:
    """Its direction is undefined; the loss scales it by a constant instead of dividing by its length."""
    limits = ["resilience.spike_window=4", "resilience.max_consecutive_spikes=2"]

    run_dir = trained("zero:embedding@5", *limits)

    spikes = [record for record in read(run_dir) if record["kind"] == "spike"]
    assert (spikes[0]["data_step"], spikes[0]["where"]) == (5, "gradient")
    assert not (run_dir / "anomalies").exists()


@pytest.mark.slow
def test_the_checkpoint_of_a_capsule_outlives_rotation_and_rollback(trained: Train) -> None:
    run_dir = trained("nan:loss@1,nan:parameter@5", "train.max_steps=24", "checkpoint.keep_last=1")

    assert 0 in layout.data_steps(run_dir / "checkpoints")
    assert found_in(run_dir, 1)["same_bits"]
    assert found_in(run_dir, 5)["same_bits"]


@pytest.mark.slow
def test_a_damaged_start_and_an_unknown_anomaly_are_refused(trained: Train) -> None:
    run_dir = trained("nan:loss@5")
    with pytest.raises(ConfigError, match="must be one of the run's 1") as caught:
        replay.replay(run_dir, "6")
    assert f"univip replay {run_dir.name} 000000005" in str(caught.value)
    with (run_dir / "checkpoints" / "step-000000004" / layout.TENSORS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")

    with pytest.raises(CheckpointError, match="does not match its checksum"):
        replay.replay(run_dir, "5")


def test_capsules_have_a_budget(trained: Train) -> None:
    plant = "nan:loss@1,nan:loss@3,nan:loss@5"

    run_dir = trained(plant, "resilience.max_capsules=2")

    assert sorted(path.name for path in (run_dir / "anomalies").iterdir()) == ["000000001", "000000003"]


@pytest.mark.slow
def test_a_run_that_stops_for_good_leaves_the_capsule_of_the_last_straw(trained: Train, boxes: Path) -> None:
    with pytest.raises(RollbackExhaustedError):
        trained("nan:parameter@5", "resilience.max_rollbacks=0")

    newest = max(boxes.parent.glob("run-*"))
    assert found_in(newest, 5)["same_bits"]
