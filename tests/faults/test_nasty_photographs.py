"""The whole job on photographs as people have them: the unusual are used, the unusable are named and counted.

Both layouts go through the command line, as a user types it, on real pixels cut from the photographs that
scikit-image ships.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from monitoring import journal
from univip.data.images import ImageIndex
from univip.data.plan import SamplePlan
from univip.data.proposals import ProposalStore

pytestmark = pytest.mark.slow
UNIVIP = [sys.executable, "-c", "from launcher.cli.main import main; main()"]
PHOTOGRAPHS = ("coffee.png", "rocket.jpg", "astronaut.png", "chelsea.png")
SIZE = (200, 150)
GOOD = 9
STEPS, BATCH = 10, 8
OPTIONS = [
    "debug=small",
    "data.workers=0",
    "data.max_pixels=100000",
    "proposals.processes=1",
    f"train.max_steps={STEPS}",
    f"train.global_batch={BATCH}",
    "train.threads=1",
]
# Usable by what they are, though no two are alike.
UNUSUAL = {
    "strip.jpg",
    "tiny.png",
    "gray.jpg",
    "cmyk.jpg",
    "sixteen.png",
    "alpha.png",
    "turned.png",
    "upright.png",
}
UNUSABLE = {
    "huge.jpg": "too_large",
    "cut.jpg": "corrupt",
    "empty.jpg": "corrupt",
    "letter.jpg": "corrupt",
    "missing.jpg": "missing",
}
_ORIENTATION = 0x0112


def univip(runs: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*UNIVIP, *arguments],
        env=os.environ | {"UNIVIP_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def photographs() -> list[PIL.Image.Image]:
    package = importlib.util.find_spec("skimage")
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "data"
    return [PIL.Image.open(folder / name).convert("RGB").resize((640, 480)) for name in PHOTOGRAPHS]


def make_good(folder: Path) -> None:
    folder.mkdir(parents=True)
    whole = photographs()
    for number in range(GOOD):
        x, y = 110 * (number // len(whole)), 90 * (number // len(whole))
        crop = whole[number % len(whole)].crop((x, y, x + SIZE[0], y + SIZE[1]))
        crop.save(folder / f"good-{number}.jpg", quality=95)


def make_nasty(folder: Path) -> None:
    """Every file of `UNUSUAL` and `UNUSABLE`, but the one that is missing."""
    whole = photographs()
    small = whole[0].crop((200, 150, 200 + SIZE[0], 150 + SIZE[1]))
    whole[1].crop((0, 200, 640, 264)).save(folder / "strip.jpg")
    whole[2].resize((63, 63)).save(folder / "tiny.png")
    small.convert("L").save(folder / "gray.jpg")
    small.convert("CMYK").save(folder / "cmyk.jpg")
    gray = np.asarray(small.convert("L")).astype(np.uint16)
    PIL.Image.fromarray(gray * 257).save(folder / "sixteen.png")
    small.quantize(64).save(folder / "alpha.png", transparency=3)
    exif = PIL.Image.Exif()
    exif[_ORIENTATION] = 6
    small.save(folder / "turned.png", exif=exif)
    small.transpose(PIL.Image.Transpose.ROTATE_270).save(folder / "upright.png")

    whole[3].save(folder / "huge.jpg")
    data = (folder / "good-0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").touch()
    (folder / "letter.jpg").write_text("Dear Sir or Madam,\n")


def annotate(root: Path, folder: Path) -> None:
    """COCO annotations that promise more than the folder holds."""
    names = sorted({path.name for path in folder.iterdir()} | {"missing.jpg"})
    sizes = {}
    for name in names:
        try:
            with PIL.Image.open(folder / name) as image:
                sizes[name] = image.size
        except OSError:
            sizes[name] = SIZE
    rows = [
        {"id": number, "file_name": name, "width": sizes[name][0], "height": sizes[name][1]}
        for number, name in enumerate(names, start=1)
    ]
    (root / "annotations").mkdir()
    document = {"images": rows, "annotations": [], "categories": []}
    (root / "annotations" / "instances_nasty.json").write_text(json.dumps(document))


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in journal.read(run_dir) if record["kind"] == kind]


def by_name(failed: dict[str, list[str]]) -> dict[str, str]:
    return {Path(path).name: reason for reason, paths in failed.items() for path in paths}


def planned(index: ImageIndex) -> Counter[str]:
    """How often each photograph is in the sample plan."""
    plan = SamplePlan(len(index), BATCH, seed=0)
    rows = [row for data_step in range(STEPS) for row in plan.batch(data_step)[1].tolist()]
    return Counter(Path(index.path(row)).name for row in rows)


@pytest.mark.parametrize("layout", ["coco", "folder"])
def test_the_unusual_are_used_and_the_unusable_named_and_counted(tmp_path: Path, layout: str) -> None:
    runs, root = tmp_path / "runs", tmp_path / "data"
    folder = root / "images" / "nasty"
    make_good(folder)
    make_nasty(folder)
    annotate(root, folder)
    unusable = {name: why for name, why in UNUSABLE.items() if layout == "coco" or name != "missing.jpg"}
    # What a header tells is told before anything starts; COCO's sizes are in the annotations.
    at_once = {"huge.jpg"} if layout == "coco" else {"huge.jpg", "empty.jpg", "letter.jpg"}

    split = ["data.split=nasty"] if layout == "coco" else []
    request = [f"data={layout}", f"data.root='{root}'", *split, *OPTIONS]
    done = univip(runs, "submit", "pipeline", *request, "--wait")

    run_dir = runs / done.stdout.splitlines()[-1]
    [boxes] = runs.glob("proposals-*")
    for name in at_once:
        assert any(line.startswith("left out") and name in line for line in done.stderr.splitlines())

    # Each is named with its reason: in files, in the journal, and where a user looks.
    left_out, failed = (by_name(read(boxes / name)["failed"]) for name in ("images.json", "proposals.json"))
    assert left_out == {name: unusable[name] for name in at_once}
    assert failed == {name: why for name, why in unusable.items() if name not in at_once}
    told = {Path(record["path"]).name: record["reason"] for record in records(boxes, "image_failed")}
    assert told == unusable
    shown = univip(runs, "show", run_dir.name).stdout
    assert all(name in shown for name in unusable)
    assert not any(name in shown for name in UNUSUAL)
    assert "unusable image" in univip(runs, "status").stdout

    # The others have boxes; a turned photograph has those of its upright copy.
    index = ImageIndex.open(boxes / "images.arrow")
    ids = {Path(index.path(row)).name: int(index.ids[row]) for row in range(len(index))}
    store = ProposalStore.open(boxes / "proposals.arrow")
    assert set(ids) == {f"good-{n}.jpg" for n in range(GOOD)} | UNUSUAL | set(failed)
    assert all((len(store[image_id]) > 0) == (name not in failed) for name, image_id in ids.items())
    turned, upright = (
        {tuple(box) for box in store[ids[name]].tolist()} for name in ("turned.png", "upright.png")
    )
    assert (turned == upright) == (layout == "folder")

    # Training went on, and every sample of a lost photograph is counted.
    last = records(run_dir, "step")[-1]
    assert (last["data_step"], last["step"], records(run_dir, "restart")) == (STEPS, STEPS, [])
    plan, counts = planned(index), last["counts"]
    assert counts["images"] == STEPS * BATCH
    for reason in ("missing", "corrupt"):
        expected = sum(count for name, count in plan.items() if failed.get(name) == reason)
        assert counts[f"substituted_{reason}"] == expected
    assert counts["too_small"] >= plan["tiny.png"] > 0
    assert f"{sum(plan[name] for name in failed)} replaced by other photographs" in " ".join(shown.split())
    lost = {Path(record["path"]).name for record in records(run_dir, "image_failed")}
    assert lost == set(failed)
    assert read(run_dir / "results" / "evaluate.json")["num_images"] == GOOD + len(UNUSUAL)


def test_lost_photographs_cost_samples_and_too_many_of_them_the_run_until_they_are_back(
    tmp_path: Path,
) -> None:
    runs, root, away = tmp_path / "runs", tmp_path / "data", tmp_path / "away"
    folder = root / "images" / "nasty"
    make_good(folder)
    annotate(root, folder)
    away.mkdir()
    request = [f"data.root='{root}'", "data.split=nasty", *OPTIONS]
    univip(runs, "submit", "proposals", *request, "--wait")

    for path in sorted(folder.iterdir())[1:]:
        path.rename(away / path.name)
    refused = univip(runs, "submit", "train", *request, "--wait", code=1)
    run = refused.stdout.splitlines()[-1]
    shown = univip(runs, "show", run).stdout

    [trained] = [read(path) for path in (runs / run).glob("attempts/*/attempt.json")]
    assert (trained["exit_code"], trained["cause"]) == (77, "refused")
    for text in (refused.stderr, shown):
        assert "failed" in text
        assert "`data.root` must hold usable images, but 11 in a row are not" in text
        assert "restore the photographs" in text

    for path in sorted(away.iterdir())[2:]:
        path.rename(folder / path.name)
    univip(runs, "resume", run, "--wait")

    last = records(runs / run, "step")[-1]
    [boxes] = runs.glob("proposals-*")
    plan = planned(ImageIndex.open(boxes / "images.arrow"))
    lost = {path.name for path in away.iterdir()} | {"missing.jpg"}
    assert last["data_step"] == STEPS
    # Steps that the refused attempt had made count as well, so there may be more.
    assert last["counts"]["substituted_missing"] >= sum(plan[name] for name in lost) > 0
    assert {Path(record["path"]).name for record in records(runs / run, "image_failed")} >= lost
