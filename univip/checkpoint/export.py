"""Backbone weights out of a checkpoint, under the names that other code expects.

A checkpoint holds them as `online.backbone.*` in torchvision's names. timm uses the same ones for ResNets;
detectron2 counts stages from 2, puts the first layers into a stem, hangs each normalisation below its
convolution, and has no counters of batches. Only NumPy is needed.
"""

from __future__ import annotations

import re
import shlex
from enum import StrEnum
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save

from univip.atomic import replacing
from univip.checkpoint import layout
from univip.errors import CheckpointError, ConfigError

_PREFIX = "online.backbone."
_RESNET_STAGE = re.compile(r"layer(\d)\.")


class Names(StrEnum):
    """Whose names the weights get."""

    torchvision = "torchvision"
    timm = "timm"
    detectron2 = "detectron2"


def export_backbone(checkpoint: Path, output: Path, names: Names) -> int:
    """Write the online backbone of one checkpoint, every byte of which is verified, as safetensors.

    Args:
        checkpoint: Directory of the checkpoint.
        output: The file; replaced at once if it exists.
        names: For `detectron2` those of its own converted ResNets, `stem.conv1.weight` to
            `res5.2.conv3.norm.running_var`, which it matches by their endings.

    Returns:
        Number of tensors.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        ConfigError: If the names are those of a ResNet and the backbone is none, or the output is a folder or
            lies in none.
        OSError: If the output cannot be written.
    """
    # Known before gigabytes are verified.
    if output.is_dir():
        raise ConfigError(
            f"the weights must be written to a file, but `{output}` is a folder.",
            where=str(output.absolute()),
            fix=f"-o {shlex.quote(str(output / 'backbone.safetensors'))}",
        )
    if not output.parent.is_dir():
        raise ConfigError(
            f"the weights must be written into a folder that exists, but `{output.parent}` is none.",
            where=str(output.absolute()),
            fix=f"mkdir -p {shlex.quote(str(output.parent))}  # or -o with another one",
        )
    manifest = layout.verify(checkpoint)
    with safe_open(checkpoint / layout.TENSORS, framework="numpy") as file:
        tensors = {
            name.removeprefix(_PREFIX): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 - no mapping, though it has keys
            if name.startswith(_PREFIX)
        }
    if not tensors:
        raise CheckpointError("it holds no backbone", where=str(checkpoint))
    if names is Names.detectron2:
        if "layer1.0.conv1.weight" not in tensors:
            raise ConfigError(
                "the backbone must be a ResNet to be exported for detectron2, but is none.",
                where=str(checkpoint),
                fix=f"the same command with --names {Names.torchvision}",
            )
        tensors = {_detectron2(name): value for name, value in tensors.items() if "num_batches" not in name}
    metadata = {
        "format": "pt",
        "names": names,
        "data_step": str(manifest.data_step),
        "step": str(manifest.step),
    }
    try:
        with replacing(output) as temporary:
            # Not by `save_file`, whose errors do not say what the system said.
            temporary.write_bytes(save(tensors, metadata))
    except OSError as error:  # of a name that nobody has typed
        raise OSError(error.errno, error.strerror, str(output.parent)) from error
    return len(tensors)


def _detectron2(name: str) -> str:
    stage = _RESNET_STAGE.match(name)
    name = f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
