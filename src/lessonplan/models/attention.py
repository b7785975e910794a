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
    settings["scaling"] = scaling
    batch, mask = lessonplan_batch, attention_mask
    if batch is None or mask is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: Tensor = sdpa_attention_forward(module, query, key, value, mask, **settings)[0]
        return plain, None
    outs = []
    row = token = 0
    # Batches that are joined attend each by itself, with the width and the bytes it has alone.
    for part in batch.parts or (batch,):
        tokens, (rows, width) = len(part.place), part.ids.shape
        mine = slice(token, token + tokens)
        outs.append(
            _attend(
                module,
                query[:, :, mine],
                key[:, :, mine],
                value[:, :, mine],
                mask[row : row + rows, :, :width, :width],
                part,
                settings,
            )
        )
        row, token = row + rows, token + tokens
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)), None


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    batch: Batch,
    settings: dict[str, Any],
) -> Tensor:
    shape = batch.ids.shape
    if query.device.type == "cpu" and shape[1] <= SHORT:
        scaling = settings["scaling"]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _explicit(query, key, value, mask, batch.token, batch.place, scale)
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def apart(x: Tensor) -> Tensor:
        by_token = x[0].transpose(0, 1).index_select(0, batch.token)
        return by_token.view(*shape, *by_token.shape[1:]).transpose(1, 2)

    out: Tensor
    out = sdpa_attention_forward(module, apart(query), apart(key), apart(value), mask, **settings)[
        0
    ]
    return out.flatten(0, 1).index_select(0, batch.place)[None]


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
        _, heads, tokens, _ = query.shape
        keys = key.shape[1]
        of_query, of_key = _sources(token, rows, heads), _sources(token, rows, keys)

        def apart(x: Tensor, of: Tensor) -> Tensor:  # [1, heads, T, d] to [B * keys, groups * L, d]
            by_head = x[0].transpose(0, 1).flatten(0, 1)
            return by_head.index_select(0, of).view(rows * keys, -1, x.shape[-1])

        q, k, v = apart(query, of_query), apart(key, of_key), apart(value, of_key)
        unseen = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        scores = q.new_empty(rows, heads, length, length).copy_(unseen).view(len(q), -1, length)
        weights = scores.baddbmm_(q, k.transpose(1, 2), alpha=scale).softmax(-1)
        out = torch.bmm(weights, v)
        of_out = _places(place, length, heads)
        ctx.tokens, ctx.places, ctx.scale = tokens, len(token), scale
        ctx.save_for_backward(q, k, v, weights, out, of_query, of_key, of_out)
        return out.flatten(0, 1).index_select(0, of_out).view(1, tokens, heads, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, out, of_query, of_key, of_out = ctx.saved_tensors
        padded = torch.zeros_like(out)
        padded.flatten(0, 1).index_copy_(0, of_out, gradients[0].flatten(0, 2))
        to_value = torch.bmm(weights.transpose(1, 2), padded)
        # Through the softmax: w (g - sum of w g); that sum is also the sum of out's times out.
        to_scores = torch.bmm(padded, v.transpose(1, 2))
        to_scores.sub_(torch.linalg.vecdot(padded, out)[..., None]).mul_(weights).mul_(ctx.scale)
        to_query = torch.bmm(to_scores, k)
        to_key = torch.bmm(to_scores.transpose(1, 2), q)

        def together(x: Tensor, of: Tensor) -> Tensor:  # a token's is the sum over its places
            heads = len(of) // ctx.places
            by_head = x.new_zeros(ctx.tokens * heads, x.shape[-1])
            by_head.index_add_(0, of, x.flatten(0, 1))
            return by_head.view(1, ctx.tokens, heads, -1).transpose(1, 2)

        return (
            together(to_query, of_query),
            together(to_key, of_key),
            together(to_value, of_key),
            *(None,) * 4,
        )


def _sources(token: Tensor, rows: int, heads: int) -> Tensor:
    """Return what stands in each place of ``[B, heads, L]``, as indices into ``[T, heads]``."""
    by_head = token.view(rows, 1, -1) * heads + torch.arange(heads)[:, None]
    return by_head.flatten()


def _places(place: Tensor, length: int, heads: int) -> Tensor:
    """Return where each of ``[T, heads]`` stands (first), as indices into ``[B, heads, L]``."""
    of_first = place // length * (heads * length) + place % length
    return (of_first[:, None] + torch.arange(heads) * length).flatten()


_explicit: Callable[..., Tensor] = _Explicit.apply
