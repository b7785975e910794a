"""Attention over rows that lie end to end, each row by itself.

Everything else in a layer works token by token and needs no padding. Attention does, but not the
work of seeing other rows, which a mask over all tokens would cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lessonplan.models.batch import Batch

NAME = "lessonplan_packed"  # of `attend` among Transformers' attention functions
# Up to this length of row the explicit way is the faster one on a CPU, and its weights are small.
SHORT = 128


def attend_by_rows(network: Any) -> None:
    """Have a Transformers model use `attend`, unless its class has an attention of its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    network.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lessonplan_batch: Batch | None = None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend as Transformers' "sdpa" does, row by row if a batch of packed rows is given.

    Args:
        query: ``[1, heads, T, d]``; key, value: ``[1, key heads, T, d]``.
        attention_mask: bool ``[B, 1, L, L]``, true where a query sees a key.
        lessonplan_batch: whose tokens these are.

    Returns:
        ``[1, T, heads, d]``.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    settings["scaling"] = scaling
    batch, mask = lessonplan_batch, attention_mask
    if batch is None or mask is None:
        plain: Tensor = sdpa_attention_forward(module, query, key, value, mask, **settings)[0]
        return plain, None
    shape = batch.ids.shape
    if query.device.type == "cpu" and shape[1] <= SHORT:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _explicit(query, key, value, mask, batch.token, batch.place, scale), None

    def apart(x: Tensor) -> Tensor:
        by_token = x[0].transpose(0, 1).index_select(0, batch.token)
        return by_token.view(*shape, *by_token.shape[1:]).transpose(1, 2)

    out: Tensor
    out = sdpa_attention_forward(module, apart(query), apart(key), apart(value), mask, **settings)[
        0
    ]
    return out.flatten(0, 1).index_select(0, batch.place)[None], None


class _Explicit(torch.autograd.Function):
    """softmax(scale Q K' + mask) V with its weights in memory, and gradients for Q, K and V.

    B rows of L places, `groups` queries to each key and value. Padding is cut off at the end, and
    its gradient is zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        token: Tensor,
        place: Tensor,
        scale: float,
    ) -> Tensor:
        rows, _, length, _ = mask.shape
        keys = key.shape[1]
        ctx.shape = rows, length, keys

        def apart(x: Tensor) -> Tensor:  # [1, heads, T, d] to [B * keys, groups * L, d]
            return _by_key(x[0].transpose(0, 1).index_select(0, token), *ctx.shape)

        q, k, v = apart(query), apart(key), apart(value)
        weights = torch.bmm(q, k.transpose(1, 2)).mul_(scale).view(rows, -1, length, length)
        weights = weights.masked_fill_(~mask, -torch.inf).softmax(-1).view(len(q), -1, length)
        out = torch.bmm(weights, v)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, weights, out, token, place)
        return _by_token(out, *ctx.shape).index_select(0, place)[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, out, token, place = ctx.saved_tensors
        rows, length, _ = ctx.shape
        (gradient,) = gradients
        padded = gradient.new_zeros(rows * length, *gradient.shape[2:])
        of_out = _by_key(padded.index_copy_(0, place, gradient[0]), *ctx.shape)
        of_value = torch.bmm(weights.transpose(1, 2), of_out)
        # Through the softmax: w (g - sum of w g); that sum is also the sum of out's times out.
        of_weights = torch.bmm(of_out, v.transpose(1, 2))
        of_weights.sub_(torch.linalg.vecdot(of_out, out)[..., None]).mul_(weights).mul_(ctx.scale)
        of_query = torch.bmm(of_weights, k)
        of_key = torch.bmm(of_weights.transpose(1, 2), q)

        def together(x: Tensor) -> Tensor:  # a token's gradient is the sum over its places
            by_place = _by_token(x, *ctx.shape)
            by_token = by_place.new_zeros(len(place), *by_place.shape[1:])
            return by_token.index_add_(0, token, by_place).transpose(0, 1)[None]

        return together(of_query), together(of_key), together(of_value), None, None, None, None


def _by_key(x: Tensor, rows: int, length: int, keys: int) -> Tensor:
    """From ``[B * L, keys * groups, d]`` to ``[B * keys, groups * L, d]``."""
    x = x.view(rows, length, keys, -1, x.shape[-1]).permute(0, 2, 3, 1, 4)
    return x.reshape(rows * keys, -1, x.shape[-1])


def _by_token(x: Tensor, rows: int, length: int, keys: int) -> Tensor:
    """From ``[B * keys, groups * L, d]`` to ``[B * L, keys * groups, d]``."""
    x = x.view(rows, keys, -1, length, x.shape[-1]).permute(0, 3, 1, 2, 4)
    return x.reshape(rows * length, -1, x.shape[-1])


_explicit: Callable[..., Tensor] = _Explicit.apply
