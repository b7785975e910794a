"""The engine: log-likelihoods of options, exactly as the plain way gives them, for less work.

Four shortcuts, each checked against the model's own plain pass when an engine is made:

- *sharing*: a question's options are scored in one row, a tree of tokens; a mask lets each token
  see its own text alone;
- *reading*: the projection to the vocabulary is computed only where an answer's token is predicted;
- *narrowing*: in the last layer other tokens are seen (as keys and values) but not worked out;
- *splitting*: the layers below the lowest tuned one are the same in every run, so their output is
  computed once a row and kept (`Hidden`).

Where an architecture does not allow a shortcut, the engine takes the plain way and says so once.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from lessonplan.models.rows import Row, token_tree

# Largest difference in a token's log-probability that counts as "the same" at load, by dtype. In
# float32 the shortcuts differ from the plain pass by about 1e-6; a wrong mask differs by over 1e-2.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
SCORING_BATCH = 16


class PlainWayWarning(UserWarning):
    """A shortcut does not hold for this model; results are right, but take longer."""


@dataclass(frozen=True)
class Hidden:
    """The output of the lower layers for a set of rows.

    Attributes:
        states: ``[sum of row lengths, H]``, row after row; in memory or memory-mapped.
        starts: where each row begins, int64 ``[rows + 1]``.
    """

    states: Tensor
    starts: NDArray[np.int64]

    def row(self, index: int) -> Tensor:
        return self.states[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True)
class Batch:
    """Rows as one tensor, padded to one length or packed end to end, and what is read of them.

    Attributes:
        ids, positions: int64 ``[B, T]``, one row each or, packed, ``[1, T]`` with all rows.
        end: int64 ``[B, T]`` where the texts that a token belongs to end; 0 for padding.
        row: int64 ``[B, T]`` which row a token belongs to; -1 for padding.
        spots: int64 ``[U]`` the distinct places read, as indices into ``[B * T]``.
        spot: int64 ``[R]`` for each scored token, which of the spots predicts it.
        target: int64 ``[R]`` the token scored.
        slot: int64 ``[R]`` question in the batch * K + option, where K is the most options.
        n_options: int64 ``[B]``.
    """

    ids: Tensor
    positions: Tensor
    end: Tensor
    row: Tensor
    spots: Tensor
    spot: Tensor
    target: Tensor
    slot: Tensor
    n_options: Tensor


class Engine:
    """Scores token rows with one network, whose linear layers may carry adapters.

    Args:
        network: a Transformers causal language model.
        keep_below: number of lower layers whose output may be computed once and kept, because
            nothing in them is trained. 0 keeps nothing.
    """

    def __init__(self, network: Any, *, keep_below: int = 0) -> None:
        self.network = network
        self.device = next(network.parameters()).device
        self.base = network.base_model
        self.sharing = self.reading = self.narrowing = True
        self.keep_below = 0
        self._read: tuple[Tensor, torch.Size] | None = None  # while only some tokens are asked for
        self._narrow()
        self._lower: Any = None
        self._upper: Any = self.base
        self._verify(keep_below)

    @property
    def n_layers(self) -> int:
        return int(self.network.config.num_hidden_layers)

    def token_logprobs(
        self, rows: Sequence[Row], hidden: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Batch]:
        """Return the log-probability of every scored token of a few rows.

        Args:
            rows: at least one.
            hidden: for each row the lower layers' output ``[T, H]``, from `lower`.

        Returns:
            float32 ``[R]`` and the batch that says whose tokens they are.
        """
        if self.sharing:
            batch = collate(rows, self.device, packed=self._packing_pays(rows))
        else:
            plain = collate([alone for row in rows for alone in _alone(row)], self.device)
            batch = _regrouped(plain, rows, self.device)
        attention = self._attention(batch)
        if hidden is not None:
            states = torch.zeros(
                *batch.row.shape, hidden[0].shape[-1], dtype=hidden[0].dtype, device=self.device
            )
            # Tokens stand row after row in both layouts.
            states[batch.row >= 0] = torch.cat(list(hidden)).to(self.device)
            inputs: dict[str, Tensor] = {"inputs_embeds": states}
            body = self._upper
        else:
            inputs = {"input_ids": batch.ids}
            body = self.base
        if self.reading:
            self._read = (batch.spots, batch.row.shape) if self.narrowing else None
            try:
                out = body(**inputs, **attention, use_cache=False).last_hidden_state
            finally:
                self._read = None
            read = out.reshape(-1, out.shape[-1])[batch.spots]
            logits = self.network.get_output_embeddings()(read)
        else:
            logits = self.network(**inputs, **attention, use_cache=False).logits
            logits = logits.reshape(-1, logits.shape[-1])[batch.spots]
        return _target_logprobs(logits.float(), batch.spot, batch.target), batch

    def option_sums(
        self, rows: Sequence[Row], hidden: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return each option's log-likelihood and number of scored tokens, both ``[B, K]``.

        Options that a question lacks have the sum 0 and 0 tokens.
        """
        logprobs, batch = self.token_logprobs(rows, hidden)
        k = int(batch.n_options.max())
        sums = torch.zeros(len(rows) * k, device=self.device).index_add(0, batch.slot, logprobs)
        counts = torch.bincount(batch.slot, minlength=len(rows) * k)
        return sums.view(len(rows), k), counts.view(len(rows), k)

    @torch.no_grad()
    def score(
        self,
        rows: Sequence[Row],
        hidden: Hidden | None = None,
        part: NDArray[np.int64] | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]:
        """Return the log-likelihood (nats) and the number of tokens of each option of each row.

        Args:
            rows: all rows of a set.
            hidden: their lower layers' output, from `lower`.
            part: row numbers to score, in the order of the result; None for all.
            on_rows: called after each batch with its number of rows.

        Batches are formed by length, so that they depend on the rows asked for alone.
        """
        asked = list(range(len(rows))) if part is None else [int(i) for i in part]
        sums: list[Any] = [None] * len(asked)
        tokens: list[Any] = [None] * len(asked)
        for places in batches_by_length([rows[i] for i in asked]):
            chosen = [asked[place] for place in places]
            states = None if hidden is None else [hidden.row(i) for i in chosen]
            total, count = self.option_sums([rows[i] for i in chosen], states)
            for j, place in enumerate(places):
                k = rows[asked[place]].n_options
                sums[place] = total[j, :k].double().cpu().numpy()
                tokens[place] = count[j, :k].cpu().numpy()
            if on_rows is not None:
                on_rows(len(chosen))
        return sums, tokens

    @torch.no_grad()
    def lower(self, rows: Sequence[Row], file: Path | None = None) -> Hidden | None:
        """Return the lower layers' output for all rows, or None where nothing may be kept.

        Args:
            rows: a set of rows; batches are formed by length over all of them.
            file: where to keep the states, memory-mapped, so that processes share them and they
                need not fit into memory. If it exists they are taken from it. None: in memory.
        """
        if self._lower is None or not rows:
            return None
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        shape = (int(starts[-1]), int(self.network.config.get_text_config().hidden_size))
        if file is None:
            states = torch.empty(shape, dtype=self.network.dtype)
            self._fill(states, starts, rows)
            return Hidden(states, starts)
        with FileLock(f"{file}.lock"):
            if not file.exists():
                scratch = file.with_suffix(".part")
                self._fill(_mapped(scratch, shape, self.network.dtype, "w+"), starts, rows)
                scratch.rename(file)
        return Hidden(_mapped(file, shape, self.network.dtype, "c"), starts)

    def _fill(self, states: Tensor, starts: NDArray[np.int64], rows: Sequence[Row]) -> None:
        for chosen in batches_by_length(rows):
            some = [rows[i] for i in chosen]
            batch = collate(some, self.device, packed=self._packing_pays(some))
            out = self._lower(
                input_ids=batch.ids, **self._attention(batch), use_cache=False
            ).last_hidden_state.cpu()
            for j, i in enumerate(chosen):
                states[starts[i] : starts[i + 1]] = out[batch.row.cpu() == j]

    def _packing_pays(self, rows: Sequence[Row]) -> bool:
        """Say whether rows are less work end to end (no padding) than padded (less attention).

        A layer's products cost about 12 H^2 a token, attention 2 H a token and key. Counted twice
        here, since attention with a mask reaches about half the speed of a plain product.
        """
        width = int(self.network.config.get_text_config().hidden_size)
        lengths = [len(row) for row in rows]
        total, padded = sum(lengths), len(rows) * max(lengths)
        return total * (3 * width + total) < padded * (3 * width + max(lengths))

    def _attention(self, batch: Batch) -> dict[str, Any]:
        if not self.sharing:
            # Rows are padded on the right and nothing reads the padding, so the causal mask that
            # the model makes by itself is all that is needed.
            return {"attention_mask": (batch.row >= 0).long()}
        config = self.network.config.get_text_config()
        seen = tree_mask(batch.end)
        window = getattr(config, "sliding_window", None)
        if not window or getattr(config, "use_sliding_window", True) is False:
            return {"attention_mask": seen, "position_ids": batch.positions}
        # The window counts positions in the text, not rows of the batch.
        distance = batch.positions[:, :, None] - batch.positions[:, None, :]
        near = seen & (distance < window)[:, None]
        near |= torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
        kinds = getattr(config, "layer_types", None)
        mask = {"full_attention": seen, "sliding_attention": near} if kinds else near
        return {"attention_mask": mask, "position_ids": batch.positions}

    def _verify(self, keep_below: int) -> None:
        """Find out which shortcuts hold for this network, by its own plain pass."""
        rows = _probe_rows(self.network.config.get_text_config())
        self.sharing = self.reading = self.narrowing = False
        with torch.no_grad():
            plain = self.token_logprobs(rows)[0]
            for shortcut, name in (
                ("reading", "projecting only the tokens that are read"),
                ("narrowing", "working out only the tokens that are read in the last layer"),
                ("sharing", "scoring all options in one row"),
            ):
                setattr(self, shortcut, True)
                problem = self._differs(plain, rows)
                if problem:
                    setattr(self, shortcut, False)
                    self._say(name, problem)
            if keep_below > 0 and self.sharing and self.reading:
                problem = self._split(keep_below) or self._differs(plain, rows, kept=True)
                if problem:
                    self._lower, self._upper, self.keep_below = None, self.base, 0
                    self._say("keeping the output of the lower layers", problem)

    def _narrow(self) -> None:
        """Have the last layer's position-wise parts compute only the tokens that are read."""
        layers = getattr(self.base, "layers", None)
        if not isinstance(layers, nn.ModuleList):
            return
        attention = getattr(layers[-1], "self_attn", None)
        parts = [getattr(layers[-1], "mlp", None)]
        parts += [getattr(attention, name, None) for name in ("q_proj", "o_proj")]

        def choose(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self._read is None:
                return None
            first, *rest = arguments
            return (first.flatten(0, 1)[self._read[0]][None], *rest)

        def put_back(_: nn.Module, __: Any, out: Tensor) -> Tensor | None:
            if self._read is None:
                return None
            spots, shape = self._read
            everywhere = out.new_zeros(shape.numel(), out.shape[-1])
            return everywhere.index_copy(0, spots, out[0]).view(*shape, -1)

        for part in parts:
            if isinstance(part, nn.Module):
                part.register_forward_pre_hook(choose)
                part.register_forward_hook(put_back)

    def _differs(self, plain: Tensor, rows: Sequence[Row], kept: bool = False) -> str:
        """Return "" where the rows' log-probabilities equal the plain ones, else what is wrong."""
        try:
            lower = self.lower(rows) if kept else None
            hidden = None if lower is None else [lower.row(i) for i in range(len(rows))]
            found = self.token_logprobs(rows, hidden)[0]
        except Exception as error:  # any failure in a model's own code means: take the plain way
            return f"{type(error).__name__}: {error}"
        off = (found - plain).abs().max().item()
        if not off <= TOLERANCE[self.network.dtype]:
            return f"log-probabilities differ from the plain pass by {off:.2g}"
        return ""

    def _say(self, shortcut: str, problem: str) -> None:
        warnings.warn(
            f"{type(self.network).__name__}: {shortcut} does not hold ({problem}). The plain way "
            "is taken: the results are right, but take longer.",
            PlainWayWarning,
            stacklevel=4,
        )

    def _split(self, keep_below: int) -> str:
        norm = next(
            (name for name in NORMS if isinstance(getattr(self.base, name, None), nn.Module)), None
        )
        if norm is None or not isinstance(getattr(self.base, "layers", None), nn.ModuleList):
            return "its layers and final norm are not where they were looked for"
        self.keep_below = min(keep_below, self.n_layers)
        self._lower = _part(self.base, 0, self.keep_below, norm)
        self._upper = _part(self.base, self.keep_below, self.n_layers, None)
        return ""


class _TargetLogprob(torch.autograd.Function):
    """Log-probability of chosen targets, with one temporary of the logits' size in place of four.

    At 49,152 words and more, the temporaries of a log-softmax and its backward pass cost as much
    time as a decoder layer. Here the logits themselves become their gradient, so the graph can be
    walked once only.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, spot: Tensor, target: Tensor) -> Tensor:
        normaliser = torch.logsumexp(logits, dim=-1)
        ctx.save_for_backward(logits, normaliser, spot, target)
        return logits[spot, target] - normaliser[spot]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        logits, normaliser, spot, target = ctx.saved_tensors
        of_spot = torch.zeros_like(normaliser).index_add_(0, spot, gradient)
        # d(logit of target - normaliser) = one-hot(target) - softmax
        out = logits.sub_(normaliser[:, None]).exp_().mul_(-of_spot[:, None])
        out.index_put_((spot, target), gradient, accumulate=True)
        return out, None, None


_target_logprobs: Callable[[Tensor, Tensor, Tensor], Tensor] = _TargetLogprob.apply


def collate(
    rows: Sequence[Row], device: torch.device | str = "cpu", *, packed: bool = False
) -> Batch:
    """Put rows into one tensor and flatten what is read of them.

    Args:
        packed: end to end in one line, in place of one line a row with padding.
    """
    most = max(row.n_options for row in rows)
    lengths = [len(row) for row in rows]
    shape = (1, sum(lengths)) if packed else (len(rows), max(lengths))
    ids = np.zeros(shape, dtype=np.int64)
    positions, end = np.zeros_like(ids), np.zeros_like(ids)
    owner = np.full(shape, -1)
    begins = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(rows)) * shape[1]
    for i, (row, begin) in enumerate(zip(rows, begins, strict=True)):
        place = slice(begin, begin + len(row))
        ids.flat[place] = row.ids
        positions.flat[place] = row.positions
        end.flat[place] = row.end + (begin if packed else 0)
        owner.flat[place] = i
    spots, spot = np.unique(
        np.concatenate([begin + row.read for row, begin in zip(rows, begins, strict=True)]),
        return_inverse=True,
    )
    arrays = (
        ids,
        positions,
        end,
        owner,
        spots,
        spot,
        np.concatenate([row.target for row in rows]),
        np.concatenate([i * most + row.option for i, row in enumerate(rows)]),
        np.array([row.n_options for row in rows]),
    )
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def tree_mask(end: Tensor) -> Tensor:
    """Return who sees whom: bool ``[B, 1, T, T]``, queries by keys.

    A token sees what stands before it in its own text, and itself (padding, too, so that no row of
    the softmax is empty).
    """
    place = torch.arange(end.shape[1], device=end.device)
    query, key = place[:, None], place[None, :]
    seen = (key <= query) & (query < end[:, None, :])
    return (seen | (key == query))[:, None]


def batches_by_length(rows: Sequence[Row], size: int = SCORING_BATCH) -> Iterator[list[int]]:
    """Yield row numbers in batches of rows of similar length: little padding, always the same."""
    by_length = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    for start in range(0, len(rows), size):
        yield by_length[start : start + size]


def _alone(row: Row) -> list[Row]:
    """Return a plain row for each option: its own text, from beginning to end."""
    alone = []
    for k in range(row.n_options):
        scored = row.option == k
        last = row.read[scored].max()
        text = np.flatnonzero((np.arange(len(row)) <= last) & (last < row.end))
        alone.append(
            Row(
                ids=row.ids[text],
                positions=row.positions[text],
                end=np.full(len(text), len(text)),
                read=np.searchsorted(text, row.read[scored]),
                target=row.target[scored],
                option=np.zeros(int(scored.sum()), dtype=np.int64),
                n_options=1,
                lengths=row.lengths[k : k + 1],
            )
        )
    return alone


def _regrouped(batch: Batch, rows: Sequence[Row], device: torch.device) -> Batch:
    """Give the tokens of plain rows back to the question and option that they belong to."""
    most = max(row.n_options for row in rows)
    slots = np.concatenate([i * most + np.arange(row.n_options) for i, row in enumerate(rows)])
    slot = torch.from_numpy(slots).to(device)[batch.slot]
    n_options = torch.tensor([row.n_options for row in rows], device=device)
    return replace(batch, slot=slot, n_options=n_options)


def _part(base: Any, first: int, last: int, identity_norm: str | None) -> Any:
    """Return a shallow copy of a decoder with some of its layers; weights are shared.

    `identity_norm` names the final norm to leave out, for a part that is not the last.
    """
    part = copy.copy(base)
    part._modules = dict(base._modules)
    part.layers = nn.ModuleList(list(base.layers)[first:last])
    part.config = copy.deepcopy(base.config)
    part.config.num_hidden_layers = last - first
    if getattr(base.config, "layer_types", None):
        part.config.layer_types = base.config.layer_types[first:last]
    if identity_norm:
        setattr(part, identity_norm, nn.Identity())
    return part


def _mapped(file: Path, shape: tuple[int, int], dtype: torch.dtype, mode: Any) -> Tensor:
    size = shape[0] * shape[1] * dtype.itemsize
    raw: Any = np.memmap(file, dtype=np.uint8, mode=mode, shape=(size,))
    return torch.from_numpy(raw).view(dtype).view(shape)


def _probe_rows(config: Any) -> list[Row]:
    """Return two rows of arbitrary tokens; the longer one outgrows a short attention window."""
    rng = np.random.default_rng(0)
    vocabulary = int(config.vocab_size)
    windows = ("sliding_window", "attention_chunk_size", "window_size")
    found = [getattr(config, name, None) for name in windows]
    window = next((w for w in found if isinstance(w, int)), 0)
    longest = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    long = min(max(window + 4, 6), 1100, longest - 8)
    rows = []
    for prefix, endings in ((9, (4, 1, 3)), (long, (2, 3))):
        texts = [rng.integers(vocabulary, size=prefix + ending).tolist() for ending in endings]
        for text in texts:
            text[:prefix] = texts[0][:prefix]
        texts[-1][prefix] = texts[0][prefix]  # options that begin alike share that, too
        rows.append(token_tree(texts, [prefix] * len(texts), endings))
    return rows
