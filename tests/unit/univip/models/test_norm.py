"""Statistics that become permanent or leave no trace."""

import copy

import torch
import torchvision.models
from torch import nn

from univip.models.norm import SynchronizedBatchNorm, commit_statistics, discard_statistics


def bytes_of(module):
    return {name: buffer.numpy().tobytes() for name, buffer in module.named_buffers()}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), SynchronizedBatchNorm(4), nn.ReLU(), SynchronizedBatchNorm(4))


def test_training_forward_does_not_touch_the_buffers():
    module = network()
    before = bytes_of(module)

    module(torch.randn(2, 3, 8, 8))

    assert bytes_of(module) == before


def test_discarding_leaves_every_byte_also_after_nan():
    module = network()
    module(torch.randn(2, 3, 8, 8))
    commit_statistics(module)
    before = bytes_of(module)

    module(torch.full((2, 3, 8, 8), torch.nan))
    discard_statistics(module)
    commit_statistics(module)

    assert bytes_of(module) == before


def test_forwards_after_a_discard_start_from_the_buffers():
    kept, skipped = network(), network()
    good = torch.randn(2, 3, 8, 8)
    skipped(torch.full((2, 3, 8, 8), torch.inf))
    discard_statistics(skipped)
    for module in (kept, skipped):
        module(good)
        commit_statistics(module)

    assert bytes_of(kept) == bytes_of(skipped)


def test_several_forwards_before_a_commit_accumulate_like_one_after_the_other():
    together, apart = network(), network()
    batches = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    for batch in batches:
        together(batch)
        apart(batch)
        commit_statistics(apart)
    commit_statistics(together)

    assert bytes_of(together) == bytes_of(apart)
    assert together[1].num_batches_tracked.item() == 3


def test_no_grad_still_uses_the_batch_in_training_mode():
    module = SynchronizedBatchNorm(3)
    with torch.no_grad():
        result = module(torch.randn(64, 3) * 5.0 + 7.0)

    torch.testing.assert_close(result.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std(dim=0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_pending_statistics_are_not_saved_and_not_used_in_evaluation():
    module = network()
    module(torch.randn(2, 3, 8, 8))
    saved = copy.deepcopy(module.state_dict())

    assert (
        saved.keys()
        == nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
        .state_dict()
        .keys()
    )
    x = torch.randn(1, 3, 8, 8)
    expected = network().eval()(x)
    torch.testing.assert_close(module.eval()(x), expected, rtol=0, atol=0)


def test_batch_without_rows_changes_nothing_and_has_gradients_of_zero():
    module = network()
    before = bytes_of(module)

    result = module(torch.zeros(0, 3, 8, 8))
    result.sum().backward()
    commit_statistics(module)

    assert result.shape == (0, 4, 6, 6)
    assert bytes_of(module) == before
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_single_value_per_channel_becomes_the_bias_and_stays_finite():
    module = SynchronizedBatchNorm(3)
    nn.init.constant_(module.bias, 0.5)
    x = torch.randn(1, 3, requires_grad=True)

    result = module(x)
    result.sum().backward()
    commit_statistics(module)

    torch.testing.assert_close(result, torch.full((1, 3), 0.5))
    assert x.grad is not None
    assert not x.grad.any()
    assert module.running_var.isfinite().all()


def test_state_loads_into_the_batch_normalisation_of_torchvision():
    ours = torchvision.models.resnet18(norm_layer=SynchronizedBatchNorm)
    theirs = torchvision.models.resnet18()

    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32)

    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)
