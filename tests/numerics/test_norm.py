"""Synchronised batch normalisation in one process against torch's own, in float64."""

import pytest
import torch
from torch import nn

from univip.models.norm import SynchronizedBatchNorm, commit_statistics


def pair(channels=3):
    """Ours and torch's, with the same random parameters."""
    reference = nn.BatchNorm2d(channels) if channels == 3 else nn.BatchNorm1d(channels)
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    ours = SynchronizedBatchNorm(channels)
    ours.load_state_dict(reference.state_dict())
    return ours.double(), reference.double()


@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (6, 7)])
def test_output_gradients_and_buffers_are_those_of_torch(shape):
    torch.manual_seed(0)
    ours, reference = pair(shape[1])
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64) * 3.0 + 2.0
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        weights = torch.randn(shape, dtype=torch.float64)
        outputs = [module(value) for module, value in zip((ours, reference), inputs, strict=True)]
        for output in outputs:
            (output.sin() * weights).sum().backward()

        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.weight.grad, reference.weight.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.bias.grad, reference.bias.grad, rtol=1e-11, atol=1e-12)
    commit_statistics(ours)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)

    torch.testing.assert_close(ours.eval()(x), reference.eval()(x), rtol=1e-12, atol=1e-12)


def test_gradient_passes_gradcheck():
    torch.manual_seed(0)
    module = SynchronizedBatchNorm(2).double()
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def normalise(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(normalise, (x, weight, bias))


def test_mean_far_from_zero_loses_no_variance_in_fp32():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8) + 1000.0
    module = SynchronizedBatchNorm(3)

    module(x)
    commit_statistics(module)

    expected = 0.9 + 0.1 * x.double().var(dim=(0, 2, 3), correction=1)
    torch.testing.assert_close(module.running_var.double(), expected, rtol=1e-5, atol=0)


def test_bf16_input_accumulates_in_fp32_and_returns_bf16():
    torch.manual_seed(0)
    x = (torch.randn(256, 3, 8, 8) + 10.0).bfloat16().requires_grad_()
    module = SynchronizedBatchNorm(3)
    y = module(x)
    y.square().sum().backward()
    commit_statistics(module)

    exact = x.detach().double()
    torch.testing.assert_close(
        module.running_mean.double(), 0.1 * exact.mean(dim=(0, 2, 3)), rtol=1e-5, atol=0
    )
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32


def test_channels_last_input_gives_the_same_numbers():
    torch.manual_seed(0)
    ours, _ = pair()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        value = x.clone(memory_format=layout).requires_grad_()
        output = ours(value)
        output.pow(3).sum().backward()
        results.append((output, value.grad))

    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


def test_gradient_that_is_an_expanded_scalar_is_taken():
    ours, reference = pair()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    gradients = []
    for module in (ours, reference):
        value = x.clone().requires_grad_()
        module(value).sum().backward()
        gradients.append(value.grad)

    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cuda_agrees_with_torch(dtype, layout):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    ours, reference = (module.float().cuda() for module in pair())
    x = torch.randn(16, 3, 8, 8, device="cuda").to(dtype=dtype, memory_format=layout)
    gradients = []
    for module in (ours, reference):
        value = x.clone().requires_grad_()
        module(value).float().pow(2).mul(x).sum().backward()
        gradients.append(value.grad)
    commit_statistics(ours)

    tolerance = 1e-4 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.running_var, reference.running_var, rtol=1e-5, atol=1e-5)
