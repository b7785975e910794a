"""Matrix products with frozen weights, by the faster of the two libraries that torch has on CPUs.

torch gives float32 products to MKL. On Intel's processors that is the faster library; on AMD's
oneDNN is, by a tenth to a half, with two exceptions: without AVX-512 it takes up to twice as long
for ``gradient @ weight``, and a call of it takes longer than a product of small rank. The choice
follows from device, type and kind of processor alone, so the same study takes the same kernels
every time. `python -m bench.products` measures both.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def _made_by_intel() -> bool:
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)  # older versions lack it
    return "Intel" in capabilities().get("cpu_name", "")


HAS_ONEDNN: bool = (
    platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
)
ONEDNN: bool = HAS_ONEDNN and not _made_by_intel()
ONEDNN_BACK: bool = ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"


def in_float32_on_cpu(*tensors: Tensor) -> bool:
    """Say whether these are float32 on a CPU, whose products are chosen here."""
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` by oneDNN, outside of autograd."""
    # The overload by its name: looking it up takes as long as a small product.
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``, outside of autograd; see `in_float32_on_cpu`."""
    return by_onednn(x, weight, bias) if ONEDNN else nn.functional.linear(x, weight, bias)


def times_back(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return ``gradient @ weight``, outside of autograd: the way back through `times`."""
    return by_onednn(gradient, weight.t()) if ONEDNN_BACK else gradient @ weight


class FrozenLinear(nn.Linear):
    """A linear layer whose weights are never trained."""

    def forward(self, x: Tensor) -> Tensor:
        if ONEDNN and in_float32_on_cpu(x, self.weight):
            return _frozen(x, self.weight, self.bias)
        return nn.functional.linear(x, self.weight, self.bias)


def freeze(network: nn.Module) -> None:
    """Stop a network's gradients and have its plain linear layers multiply as `FrozenLinear`."""
    network.requires_grad_(False)
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return times(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return times_back(gradients[0], weight), None, None


_frozen: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _Frozen.apply


class _LowRank(torch.autograd.Function):
    """``W x + b + s B A x`` and gradients for x, A and B: five products a way, no other copy.

    The tokens may belong to several adapters, so many to each: one product with W serves them all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scaling: float,
        sizes: Sequence[int],
        *factors: Tensor,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = times(flat, weight, bias)
        lows = []
        parts = zip(flat.split_with_sizes(sizes), out.split_with_sizes(sizes), strict=True)
        for (seen, given), (a, b) in zip(parts, _pairs(factors), strict=True):
            lows.append(seen @ a.t())
            given.addmm_(lows[-1], b.t(), alpha=scaling)
        ctx.save_for_backward(flat, weight, *factors, *lows)
        ctx.scaling, ctx.sizes = scaling, sizes
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *others = ctx.saved_tensors
        factors, lows = others[: 2 * len(ctx.sizes)], others[2 * len(ctx.sizes) :]
        (gradient,) = gradients
        out = gradient.reshape(-1, gradient.shape[-1])
        of_x = times_back(out, weight) if ctx.needs_input_grad[0] else None
        of_factors = []
        parts = zip(x.split_with_sizes(ctx.sizes), out.split_with_sizes(ctx.sizes), strict=True)
        first = 0
        for (seen, given), (a, b), low in zip(parts, _pairs(factors), lows, strict=True):
            of_low = (given @ b).mul_(ctx.scaling)
            if of_x is not None:
                of_x[first : first + len(seen)].addmm_(of_low, a)
            of_factors += [of_low.t() @ seen, (given.t() @ low).mul_(ctx.scaling)]
            first += len(seen)
        if of_x is not None:
            of_x = of_x.view(*gradient.shape[:-1], -1)
        return of_x, None, None, None, None, *of_factors


def _pairs(factors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return each adapter's A and B, which stand one after the other."""
    return list(zip(factors[::2], factors[1::2], strict=True))


low_rank: Callable[..., Tensor] = _LowRank.apply
"""Return ``x @ weight.T + bias + scaling * (x @ a.T) @ b.T``; see `in_float32_on_cpu`.

The arguments are x ``[..., in]``; weight ``[out, in]``, frozen; bias; scaling; how many of the
tokens, one after the other, belong to each adapter; and each adapter's a ``[rank, in]`` and b
``[out, rank]``.
"""
