"""What a replay found, for a person: lines to read and a picture to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from jobs.config import load
from jobs.reader import make_reader
from univip.data.picture import draw_sample

_DRAWN = 8  # images in the picture


def draw_images(run_dir: Path, found: dict[str, Any], path: Path) -> None:
    """A picture of the images that the fault was in, else of the first ones of that rank's batch."""
    reader = make_reader(load(run_dir), run_dir)
    culprits = [image for term in found["terms"].values() for image in term["images"]]
    ids = list(dict.fromkeys([*found["images"], *culprits]))
    shown = [(image, found["epochs"][str(image)]) for image in ids] or [
        (int(image), epoch) for image, epoch in found["epochs"].items()
    ]
    pictures = [draw_sample(reader, epoch, reader.index.row(image)) for image, epoch in shown[:_DRAWN]]
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(each, ((0, 0), (0, width - each.shape[1]), (0, 0)), constant_values=255) for each in pictures
    ]
    PIL.Image.fromarray(np.concatenate(padded)).save(path)


def lines(found: dict[str, Any]) -> list[str]:
    """The findings for a person."""
    verdict, again = found["verdict"], found["steps_again"]
    same = {
        True: "yes: the replay ends with the numbers of the run",
        False: f"NO; the run used torch {found['torch']} with {found['threads']} threads",
        None: "not compared: other arithmetic than in the run was asked for",
    }
    rows = [
        ("verdict", f"{verdict['verdict']} at data step {found['data_step']}: {verdict['what']}"),
        ("replayed", f"from {found['start']}, {again} steps again; {found['world_size']} ranks"),
        ("same bits", same[found["same_bits"]]),
    ]
    finding = found["finding"]
    if finding is None:
        rows.append(("first", "no operation put out a value that is not finite"))
    else:
        where = f"{finding['phase']}{finding['module'] and ', in ' + finding['module']}"
        rows.append(("first", f"{finding['operation']} on rank {found['rank']}, {where}"))
        rows += [("input", _tensor_line(each)) for each in finding["inputs"]]
        rows += [("constant", each) for each in finding["constants"]]
        rows += [("output", _tensor_line(each)) for each in finding["outputs"]]
    rows += [("state", _tensor_line(each)) for each in found["state"]]
    for name, term in found["terms"].items():
        images = ", ".join(map(str, term["images"]))
        rows.append(("term", f"{name}: " + (f"not finite for image {images}" if images else "its gradient")))
    if found["images"]:
        rows.append(("pixels", f"out of range in image {', '.join(map(str, found['images']))}"))
    return [f"{name:<10} {text}" for name, text in rows]


def _tensor_line(about: dict[str, Any]) -> str:
    """One tensor of a finding."""
    shape = " x ".join(map(str, about["shape"])) or "scalar"
    line = f"{about['name'] or 'unnamed'}, {about['dtype']} {shape}"
    if "min" in about:
        line += f", from {about['min']:.4g} to {about['max']:.4g}"
    return line + (f", {about['nonfinite']} not finite" if about.get("nonfinite") else "")
