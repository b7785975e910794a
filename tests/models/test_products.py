"""Products with frozen weights against plain ones in float64, forward and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lessonplan.models import products
from lessonplan.models.lora import LoraLinear
from lessonplan.models.products import FrozenLinear, freeze, in_float32_on_cpu

needs_onednn = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch has no oneDNN here")


@pytest.fixture(
    params=[
        pytest.param((True, True), id="oneDNN both ways", marks=needs_onednn),
        pytest.param((True, False), id="oneDNN forward alone", marks=needs_onednn),
        pytest.param((False, False), id="MKL"),
    ]
)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose whose products are taken, there and back."""
    there, back = request.param
    monkeypatch.setattr(products, "ONEDNN", there)
    monkeypatch.setattr(products, "ONEDNN_BACK", back)


def frozen(inputs: int, outputs: int, *, bias: bool) -> FrozenLinear:
    network = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    freeze(network)
    layer = network[0]
    assert isinstance(layer, FrozenLinear)
    return layer


def in_float64(base: nn.Linear, x: Tensor) -> Tensor:
    bias = None if base.bias is None else base.bias.double()
    return nn.functional.linear(x, base.weight.double(), bias)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 5, 24), (2, 3, 24), (7, 24)])
def test_frozen_layer(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = frozen(24, 40, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 40)
    assert in_float32_on_cpu(x, layer.weight)
    out = layer(x)
    (gradient,) = torch.autograd.grad((out * upstream).sum(), x)

    exact = x.detach().double().requires_grad_(True)
    expected = in_float64(layer, exact)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), exact)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=1e-5, rtol=1e-5)
    assert layer.weight.grad is None


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["lowest tuned layer", "above it"])
def test_low_rank_update(monkeypatch: pytest.MonkeyPatch, bias: bool, first: bool) -> None:
    """In the lowest tuned layer nothing asks for the gradient of the inputs."""
    calls = []
    monkeypatch.setattr(
        "lessonplan.models.lora.low_rank", lambda *a: calls.append(1) or products.low_rank(*a)
    )
    torch.manual_seed(1)
    module = LoraLinear(frozen(24, 40, bias=bias), rank=4, alpha=12, dropout=0.0)
    with torch.no_grad():
        module.a.normal_()
        module.b.normal_()
    x = torch.randn(1, 9, 24, requires_grad=not first)
    upstream = torch.randn(1, 9, 40)
    out = module(x)
    assert calls  # the way under test was taken
    leaves = [module.a, module.b] if first else [module.a, module.b, x]
    found = torch.autograd.grad((out * upstream).sum(), leaves)

    exact = [leaf.detach().double().requires_grad_(True) for leaf in leaves]
    a, b, *rest = exact
    inputs = rest[0] if rest else x.double()
    expected = in_float64(module.base, inputs) + 3 * (inputs @ a.t()) @ b.t()
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(
        found, torch.autograd.grad((expected * upstream).sum(), exact), strict=True
    ):
        torch.testing.assert_close(one.double(), other, atol=5e-5, rtol=1e-5)
