from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from univip.checkpoint import layout, writer
from univip.checkpoint.export import Names, export_backbone
from univip.checkpoint.layout import Manifest
from univip.config import Backbone
from univip.errors import CheckpointError, ConfigError
from univip.models.backbone import make_backbone

R50_BLOCKS = (3, 4, 6, 3)


def trained(name: Backbone) -> nn.Module:
    """A backbone whose statistics are not those it was made with."""
    torch.manual_seed(0)
    backbone = make_backbone(name)
    for key, value in backbone.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    return backbone.eval()


def save(backbone: nn.Module, directory: Path) -> Path:
    tensors = {f"online.backbone.{name}": value for name, value in backbone.state_dict().items()}
    others = {"online.projector.0.weight": torch.zeros(2), "target.backbone.conv1.weight": torch.zeros(3)}
    manifest = Manifest(layout.FORMAT, 7, 5, 1, "", 0, {}, {}, {})
    writer.write(directory / "checkpoints", {**tensors, **others}, manifest, still_owner=lambda: True)
    return directory / "checkpoints" / layout.name_of(7)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_torchvision_loads_it_and_computes_the_same_features(tmp_path: Path, images: Tensor) -> None:
    backbone = trained(Backbone.resnet18)

    export_backbone(save(backbone, tmp_path), tmp_path / "out.safetensors", Names.torchvision)

    theirs = torchvision.models.resnet18(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(load_file(tmp_path / "out.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), backbone(images))


def test_timm_loads_it_and_computes_the_same_features(tmp_path: Path, images: Tensor) -> None:
    backbone = trained(Backbone.resnet18)

    export_backbone(save(backbone, tmp_path), tmp_path / "out.safetensors", Names.timm)

    theirs = timm.create_model("resnet18", pretrained=False, num_classes=0)
    theirs.load_state_dict(load_file(tmp_path / "out.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), backbone(images))


def test_detectron2_gets_the_names_of_its_own_resnets(tmp_path: Path) -> None:
    backbone = trained(Backbone.resnet50)

    export_backbone(save(backbone, tmp_path), tmp_path / "out.safetensors", Names.detectron2)

    layers = ["stem.conv1"]
    for stage, blocks in enumerate(R50_BLOCKS, start=2):
        layers.append(f"res{stage}.0.shortcut")
        layers += [f"res{stage}.{block}.conv{number}" for block in range(blocks) for number in (1, 2, 3)]
    norm = [f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    tensors = load_file(tmp_path / "out.safetensors")
    assert set(tensors) == {f"{layer}.{part}" for layer in layers for part in ("weight", *norm)}
    state = backbone.state_dict()
    assert torch.equal(tensors["stem.conv1.norm.running_mean"], state["bn1.running_mean"])
    assert torch.equal(tensors["res5.0.shortcut.weight"], state["layer4.0.downsample.0.weight"])
    assert torch.equal(tensors["res4.5.conv2.norm.bias"], state["layer3.5.bn2.bias"])


def test_the_file_says_where_it_is_from_and_replaces_an_older_one(tmp_path: Path) -> None:
    checkpoint, output = save(trained(Backbone.tiny), tmp_path), tmp_path / "out.safetensors"
    output.write_text("older")

    export_backbone(checkpoint, output, Names.torchvision)

    with safe_open(output, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "names": "torchvision", "data_step": "7", "step": "5"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "out.safetensors"}


def test_what_is_no_resnet_has_no_names_for_detectron2(tmp_path: Path) -> None:
    checkpoint = save(trained(Backbone.tiny), tmp_path)

    with pytest.raises(ConfigError, match="must be a ResNet"):
        export_backbone(checkpoint, tmp_path / "out.safetensors", Names.detectron2)

    assert not (tmp_path / "out.safetensors").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = save(trained(Backbone.tiny), tmp_path)
    file = checkpoint / layout.TENSORS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))

    with pytest.raises(CheckpointError, match="does not match its checksum"):
        export_backbone(checkpoint, tmp_path / "out.safetensors", Names.torchvision)

    assert not (tmp_path / "out.safetensors").exists()


def test_an_output_that_cannot_be_a_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    checkpoint = tmp_path / "there is none"
    missing = tmp_path / "my weights" / "out.safetensors"

    with pytest.raises(ConfigError) as none_there:
        export_backbone(checkpoint, missing, Names.torchvision)
    with pytest.raises(ConfigError) as a_folder:
        export_backbone(checkpoint, tmp_path, Names.torchvision)

    assert none_there.value.fix == f"mkdir -p '{missing.parent}'  # or -o with another one"
    assert a_folder.value.fix == f"-o {tmp_path}/backbone.safetensors"


def test_what_the_system_says_against_the_output_is_told_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(trained(Backbone.tiny), tmp_path)

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(OSError, match="No space left") as caught:
        export_backbone(checkpoint, tmp_path / "out.safetensors", Names.torchvision)

    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}
