"""Backbones: shapes, torchvision's names, reproducible start."""

import pytest
import torch
import torchvision.models

from univip.config import Backbone
from univip.models.backbone import FEATURE_DIM, make_backbone
from univip.models.heads import make_head


@pytest.mark.parametrize("name", list(Backbone))
@pytest.mark.parametrize("batch", [0, 2])
def test_features_have_the_announced_width(name, batch):
    features = make_backbone(name)(torch.randn(batch, 3, 32, 32))

    assert features.shape == (batch, FEATURE_DIM[name])


@pytest.mark.parametrize("name", [Backbone.resnet18, Backbone.resnet50])
def test_resnet_carries_the_names_of_torchvision_without_the_classifier(name):
    theirs = getattr(torchvision.models, name.value)().state_dict()
    ours = make_backbone(name).state_dict()

    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"}
    assert {key: value.shape for key, value in ours.items()} == {key: theirs[key].shape for key in ours}


def test_no_backbone_holds_a_normalisation_of_torch():
    for name in Backbone:
        kinds = {type(module).__name__ for module in make_backbone(name).modules()}

        assert "SynchronizedBatchNorm" in kinds
        assert not kinds & {"BatchNorm1d", "BatchNorm2d", "SyncBatchNorm"}


@pytest.mark.parametrize("size", [16, 32, 64])
def test_tiny_backbone_takes_small_inputs(size):
    assert make_backbone(Backbone.tiny)(torch.randn(2, 3, size, size)).isfinite().all()


def test_same_seed_gives_the_same_weights():
    networks = []
    for _ in range(2):
        torch.manual_seed(7)
        networks.append(make_backbone(Backbone.tiny).state_dict())

    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])


def test_head_is_linear_norm_relu_linear_without_a_last_bias():
    torch.manual_seed(0)
    head = make_head(10, 200, 50)

    assert {name: tuple(value.shape) for name, value in head.named_parameters()} == {
        "0.weight": (200, 10),
        "0.bias": (200,),
        "1.weight": (200,),
        "1.bias": (200,),
        "3.weight": (50, 200),
    }
    assert head[3].weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)
