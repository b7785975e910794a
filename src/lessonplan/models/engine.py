"""The engine: log-likelihoods of options, exactly as the plain way gives them, for less work.

Five shortcuts, each checked against the model's own plain pass when an engine is made:

- *sharing*: a question's options are scored in one row, a tree of tokens; a mask lets each token
  see its own text alone;
- *packing*: the rows of a batch lie end to end, without padding, and what all of them begin with
  stands once; only attention sees rows by themselves;
- *reading*: the projection to the vocabulary is computed only where an answer's token is predicted;
- *narrowing*: in the last layer other tokens are seen (as keys and values) but not worked out;
- *splitting*: the layers below the lowest tuned one are the same in every run, so their output is
  computed once a row and kept (`Hidden`).

Where an architecture does not allow a shortcut, the engine takes the plain way and says so once.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lessonplan.models.attention import attend_by_rows
from lessonplan.models.batch import (
    Batch,
    batches_by_length,
    collate,
    collate_plain,
    joined,
    near_mask,
    tree_mask,
)
from lessonplan.models.hidden import Hidden, states_in_file
from lessonplan.models.lora import Lanes, LoraLinear
from lessonplan.models.rows import Row, token_tree

# Largest difference in a token's log-probability that counts as "the same" at load, by dtype. In
# float32 the shortcuts differ from the plain pass by about 1e-6; a wrong mask differs by over 1e-2.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
LOGITS = 2**23  # most at a time in scoring: 32 MiB in float32
PARTS = 64  # most into which the lower layers' work is cut for processes that share it
NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")


# Each shortcut, the one it builds on, and what it is in words.
SHORTCUTS = (
    ("reading", None, "projecting only the tokens that are read"),
    ("narrowing", "reading", "working out only the tokens that are read in the last layer"),
    ("sharing", None, "scoring all options in one row"),
    ("packing", "sharing", "laying rows end to end"),
)


class PlainWayWarning(UserWarning):
    """A shortcut does not hold for this model; results are right, but take longer."""


class Engine:
    """Scores token rows with one network, whose linear layers may carry adapters.

    Args:
        network: a Transformers causal language model.
        keep_below: number of lower layers whose output may be computed once and kept, because
            nothing in them is trained. 0 keeps nothing.
        longest: the most tokens that a text can have. Attention windows up to there are put to the
            test at load.

    Attributes:
        merging: whether what all rows of a batch begin with is computed once. Under dropout it must
            not be: each row draws its own.
    """

    def __init__(self, network: Any, *, keep_below: int = 0, longest: int = 512) -> None:
        self.network = network
        self.device = next(network.parameters()).device
        self.base = network.base_model
        self.sharing = self.packing = self.reading = self.narrowing = False
        self.merging = True
        self.keep_below = 0
        self._read: tuple[Tensor, torch.Size] | None = None  # while only some tokens are asked for
        attend_by_rows(network)
        self._narrow()
        self._lower: Any = None
        self._upper: Any = self.base
        tuned = (m for m in network.modules() if isinstance(m, LoraLinear))
        self._lanes = next((module.lanes for module in tuned), Lanes())
        self._verify(keep_below, _probe_rows(network.config.get_text_config(), longest))

    @property
    def n_layers(self) -> int:
        return int(self.network.config.num_hidden_layers)

    def token_logprobs(
        self,
        rows: Sequence[Row],
        hidden: Sequence[Tensor] | None = None,
        counts: Sequence[int] = (),
    ) -> tuple[Tensor, Batch]:
        """Return the log-probability of every scored token of a few rows.

        Args:
            rows: at least one.
            hidden: for each row the lower layers' output ``[T, H]``, from `lower`.
            counts: while several adapters are in use, how many of the rows, one after the other,
                each of them gets. Needs `packing`.

        Returns:
            float32 ``[R]`` and the batch that says whose tokens they are.
        """
        batch = self._collate(rows, counts)
        if batch.parts:
            # A narrowed layer gets the spots alone.
            tokens = [len(part.place) for part in batch.parts]
            spots = [len(part.spots) for part in batch.parts]
            self._lanes.sizes = {sum(tokens): tokens, sum(spots): spots}
        return self._logprobs(batch, hidden), batch

    def _logprobs(self, batch: Batch, hidden: Sequence[Tensor] | None) -> Tensor:
        spots = batch.spots if self.packing else batch.place[batch.spots]
        inputs = self._attention(batch)
        if hidden is None:
            body, fed = self.base, self._fed(batch, batch.ids)
            inputs["input_ids"] = fed
        else:
            body, fed = self._upper, self._states(batch, hidden)
            inputs["inputs_embeds"] = fed
        if self.reading:
            self._read = (spots, fed.shape[:2]) if self.narrowing else None
            try:
                out = body(**inputs, use_cache=False).last_hidden_state
            finally:
                self._read = None
            return self._projected(out.flatten(0, 1)[spots], batch)
        logits = self.network(**inputs, use_cache=False).logits.flatten(0, 1)[spots]
        return _target_logprobs(logits.float(), batch.spot, batch.target)

    def _projected(self, states: Tensor, batch: Batch) -> Tensor:
        """Return the targets' log-probabilities ``[R]``, given what is read ``[U, H]``."""
        head = self.network.get_output_embeddings()
        if torch.is_grad_enabled():
            return _target_logprobs(head(states).float(), batch.spot, batch.target)
        found = torch.empty(len(batch.target), device=self.device)
        size = max(1, LOGITS // head.out_features)
        for first in range(0, len(states), size):
            here = (first <= batch.spot) & (batch.spot < first + size)
            part = states[first : first + size]
            logits, spot, target = head(part), batch.spot[here] - first, batch.target[here]
            found[here] = _target_logprobs(logits.float(), spot, target)
            if logits.dtype != torch.float32:
                found[here] += _rounded_off(head, part, logits, spot, target)
        return found

    def option_sums(
        self,
        rows: Sequence[Row],
        hidden: Sequence[Tensor] | None = None,
        counts: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Return each option's log-likelihood and number of scored tokens, both ``[B, K]``.

        Options that a question lacks have the sum 0 and 0 tokens. For the arguments see
        `token_logprobs`.
        """
        logprobs, batch = self.token_logprobs(rows, hidden, counts)
        k = int(batch.n_options.max())
        sums = torch.zeros(len(rows) * k, device=self.device).index_add(0, batch.slot, logprobs)
        tokens = torch.bincount(batch.slot, minlength=len(rows) * k)
        return sums.view(len(rows), k), tokens.view(len(rows), k)

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
            file: where to keep the states, memory-mapped, so that processes share them and the
                work for them, and they need not fit into memory. If it exists they are taken from
                it. None: in memory.
        """
        if self._lower is None or not rows:
            return None
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        shape = (int(starts[-1]), int(self.network.config.get_text_config().hidden_size))
        batches = list(batches_by_length(rows))
        n_parts = 1 if file is None else min(PARTS, len(batches))

        def compute(states: Tensor, part: int) -> None:
            self._fill(states, starts, rows, batches[part::n_parts])

        if file is None:
            states = torch.empty(shape, dtype=self.network.dtype)
            compute(states, 0)
        else:
            states = states_in_file(file, shape, self.network.dtype, n_parts, compute)
        return Hidden(states, starts)

    def _fill(
        self,
        states: Tensor,
        starts: NDArray[np.int64],
        rows: Sequence[Row],
        batches: Sequence[Sequence[int]],
    ) -> None:
        for chosen in batches:
            some = [rows[i] for i in chosen]
            batch = self._collate(some)
            inputs = self._attention(batch) | {"input_ids": self._fed(batch, batch.ids)}
            out = self._lower(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            tokens = out[batch.token[batch.present] if self.packing else batch.present]
            for i, of_row in zip(
                chosen, tokens.cpu().split([len(row) for row in some]), strict=True
            ):
                states[starts[i] : starts[i + 1]] = of_row

    def _collate(self, rows: Sequence[Row], counts: Sequence[int] = ()) -> Batch:
        if not self.sharing:
            return collate_plain(rows, self.device)
        merging = self.packing and self.merging
        if len(counts) < 2:
            return collate(rows, self.device, merging=merging)
        ends = np.cumsum(counts)
        return joined(
            [
                collate(rows[end - count : end], self.device, merging=merging)
                for end, count in zip(ends, counts, strict=True)
            ]
        )

    def _fed(self, batch: Batch, values: Tensor) -> Tensor:
        """Return padded values ``[B, L]`` as the network gets them: packed, ``[1, T]``."""
        return values.flatten()[batch.place][None] if self.packing else values

    def _states(self, batch: Batch, hidden: Sequence[Tensor]) -> Tensor:
        states = torch.cat(list(hidden)).to(self.device)
        padded = states.new_zeros(batch.ids.numel(), states.shape[-1])
        padded.index_copy_(0, batch.present, states)
        return padded[batch.place][None] if self.packing else padded.view(*batch.ids.shape, -1)

    def _attention(self, batch: Batch) -> dict[str, Any]:
        if not self.sharing:
            # Rows are padded on the right and nothing reads the padding, so the causal mask that
            # the model makes by itself is all that is needed.
            return {"attention_mask": (batch.end > 0).long()}
        config = self.network.config.get_text_config()
        seen = tree_mask(batch.end)
        inputs: dict[str, Any] = {
            "attention_mask": seen,
            "position_ids": self._fed(batch, batch.positions),
        }
        if self.packing:
            inputs["lessonplan_batch"] = batch
        window = getattr(config, "sliding_window", None)
        if window and getattr(config, "use_sliding_window", True) is not False:
            near = seen & near_mask(batch.positions, window)
            kinds = getattr(config, "layer_types", None)
            both = {"full_attention": seen, "sliding_attention": near}
            inputs["attention_mask"] = both if kinds else near
        return inputs

    def _verify(self, keep_below: int, rows: Sequence[Row]) -> None:
        """Find out which shortcuts hold for this network, by its own plain pass."""
        with torch.no_grad():
            plain = self.token_logprobs(rows)[0]
            for shortcut, needed, what in SHORTCUTS:
                if needed is None or getattr(self, needed):
                    setattr(self, shortcut, True)
                    problem = self._differs(plain, rows)
                    if problem:
                        setattr(self, shortcut, False)
                        self._say(what, problem)
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
        """Return "" where the rows' log-probabilities equal the plain ones, else what is wrong.

        The first row is tried by itself, too, as in a last batch of one.
        """
        try:
            lower = self.lower(rows) if kept else None
            hidden = None if lower is None else [lower.row(i) for i in range(len(rows))]
            together = self.token_logprobs(rows, hidden)[0]
            alone = self.token_logprobs(rows[:1], hidden and hidden[:1])[0]
        except Exception as error:  # any failure in a model's own code means: take the plain way
            return f"{type(error).__name__}: {error}"
        expected = torch.cat((plain, plain[: len(alone)]))
        off = (torch.cat((together, alone)) - expected).abs().max().item()
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
    """Log-probability of chosen targets, without a temporary of the logits' size.

    At 49,152 words and more, the temporaries of a log-softmax and its backward pass cost as much
    time as a decoder layer. Here the logits themselves become probabilities and then their own
    gradient, so the graph can be walked once only.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, spot: Tensor, target: Tensor) -> Tensor:
        of_target = logits[spot, target]
        highest = logits.amax(dim=-1)
        exponentials = logits.sub_(highest[:, None]).exp_()
        total = exponentials.sum(dim=-1)
        ctx.save_for_backward(exponentials, total, spot, target)
        return of_target - (highest + total.log())[spot]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        exponentials, total, spot, target = ctx.saved_tensors
        of_spot = torch.zeros_like(total).index_add_(0, spot, gradient)
        # d(logit of target - normaliser) = one-hot(target) - softmax
        out = exponentials.mul_((-of_spot / total)[:, None])
        out.index_put_((spot, target), gradient, accumulate=True)
        return out, None, None


def _rounded_off(head: Any, states: Tensor, logits: Tensor, spot: Tensor, target: Tensor) -> Tensor:
    """Return by how much the targets' logits are rounded, float32 ``[R]``.

    In bfloat16 logits of 8 to 16 are multiples of 1/16, so the likeliest letters often tie, and a
    tie goes to the first. The normaliser's rounding is the same for all letters.
    """
    exact: Tensor = (states[spot].float() * head.weight[target].float()).sum(dim=-1)
    if getattr(head, "bias", None) is not None:
        exact = exact + head.bias[target].float()
    return exact - logits[spot, target].float()


_target_logprobs: Callable[[Tensor, Tensor, Tensor], Tensor] = _TargetLogprob.apply


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


def _probe_rows(config: Any, longest: int) -> list[Row]:
    """Return two rows of arbitrary tokens; one outgrows an attention window that texts can."""
    rng = np.random.default_rng(0)
    vocabulary = int(config.vocab_size)
    windows = ("sliding_window", "attention_chunk_size", "window_size")
    found = [getattr(config, name, None) for name in windows]
    window = next((w for w in found if isinstance(w, int)), 0)
    most = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    long = min(window + 4 if 6 < window < longest else 10, most - 8)
    rows = []
    beginning = rng.integers(vocabulary, size=5).tolist()  # of both rows
    for prefix, endings in ((9, (4, 1, 3)), (long, (2, 3))):
        prompt = beginning + rng.integers(vocabulary, size=prefix - 5).tolist()
        texts = [prompt + rng.integers(vocabulary, size=ending).tolist() for ending in endings]
        texts[-1][prefix] = texts[0][prefix]  # options that begin alike share that, too
        rows.append(token_tree(texts, [prefix] * len(texts), endings))
    return rows
