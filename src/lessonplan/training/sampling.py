"""An order as PyTorch's data loader and the Transformers trainers take it.

`OrderSampler` is for a loop of one's own. `KeepsOrder` is a mixin for `transformers.Trainer` and
TRL's trainers, our own backend among them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from lessonplan.errors import InputError, counted

# Settings of trainers under which a step no longer holds the next rows: the values, and why.
BREAKING: dict[str, tuple[Sequence[Any], str]] = {
    "packing": ((True,), "it changes which rows a step holds"),
    "group_by_length": ((True,), "it sorts rows by length"),
    "train_sampling_strategy": (("group_by_length", "batch_rebalance"), "it sorts rows by length"),
    "auto_find_batch_size": ((True,), "a run that starts anew with smaller batches is another run"),
    "dataloader_drop_last": ((True,), "it leaves out the last rows of the order"),
    "dataloader_in_order": ((False,), "batches are trained as workers finish them"),
    "ignore_data_skip": ((True,), "a resumed run would begin its epoch anew"),
}


class OrderSampler(Sampler[int]):
    """Row numbers in a given order, for ``DataLoader(..., sampler=...)``.

    After its last row the sampler stands at the beginning of the next epoch; `set_epoch` goes to
    one. Where the order has fewer epochs than are trained, it begins again with its first.

    Args:
        order: integers ``[shown]``, the same for every epoch, or ``[epochs, shown]``:
            ``lessonplan.order(..., epochs=E).reshape(E, -1)``.
        rank: number of this process, from 0.
        world_size: how many processes there are. Each takes every world_size-th row, so that the
            batches that all of them hold at a time are the next rows of the order.
        multiple_of: each epoch is made a multiple of this many rows by showing its last ones once
            more. At least `world_size`, which is the default, so that all processes have as many.

    Raises:
        InputError: the order is empty or no whole numbers, or no such process is possible.
    """

    def __init__(
        self,
        order: ArrayLike,
        *,
        rank: int = 0,
        world_size: int = 1,
        multiple_of: int | None = None,
    ) -> None:
        epochs = order_of_epochs(order)
        whole = world_size if multiple_of is None else multiple_of
        if not 0 <= rank < world_size or whole < 1 or whole % world_size:
            raise InputError(
                f"There is no process {rank} of {world_size} with a multiple of {whole} rows: rank "
                "counts from 0, and multiple_of must be a multiple of world_size."
            )
        missing = -epochs.shape[1] % whole
        again = np.stack([np.resize(epoch[-missing:], missing) for epoch in epochs])
        self.rows: NDArray[np.int64] = np.hstack([epochs, again])[:, rank::world_size]
        self.world_size = world_size
        self.epoch = 0
        self._resume = self._drawn = 0
        self._begun: int | None = None  # the epoch of the pass that was begun last
        self._digest = hashlib.sha256(np.ascontiguousarray(epochs, "<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        """Return how many rows this process takes in an epoch."""
        return int(self.rows.shape[1])

    def __iter__(self) -> Iterator[int]:
        epoch, start = self.epoch, self._resume
        self._resume, self._drawn, self._begun = 0, start, epoch
        rows = self.rows[epoch % len(self.rows)]
        for i in range(start, len(rows)):
            self._drawn = i + 1
            yield int(rows[i])
        self.epoch, self._drawn = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; a place inside it that was loaded is kept."""
        self._begun = None
        if epoch != self.epoch:
            self.epoch, self._resume, self._drawn = epoch, 0, 0

    def state_dict(self, seen: int | None = None) -> dict[str, Any]:
        """Return the place in the order, to go on from after an interruption.

        Args:
            seen: rows that were trained of the epoch whose pass was begun last, those of all
                processes together. None: all that were drawn, which are more: a loader with workers
                fetches ahead, and any loader draws the last rows before it gives them out.
        """
        epoch, rows = self.epoch, self._drawn * self.world_size
        if seen is not None:
            epoch, rows = self._begun if seen and self._begun is not None else epoch, seen
        return {"epoch": epoch, "seen": rows, "order": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a place, with as many processes as divide the rows seen.

        Raises:
            InputError: the place is in another order, or between the rows of these processes.
        """
        if state["order"] != self._digest:
            raise InputError("The state is that of another order; make the sampler with that one.")
        start, between = divmod(int(state["seen"]), self.world_size)
        if between or not 0 <= start <= len(self):
            raise InputError(
                f"The state is after {counted(int(state['seen']), 'row')} of an epoch, and "
                f"{self.world_size} processes of {counted(len(self), 'row')} each cannot be there."
            )
        self.epoch, self._resume, self._begun = int(state["epoch"]), start, None
        if start == len(self):
            self.epoch, self._resume = self.epoch + 1, 0
        self._drawn = self._resume


class KeepsOrder:
    """Mixin for `transformers.Trainer`, TRL's `SFTTrainer`, `DPOTrainer` and `GRPOTrainer`.

        class InOrder(KeepsOrder, SFTTrainer): ...
        trainer = InOrder(model, args, train_dataset=data, order=order)

    Each step holds the next rows of the order: in every epoch, after a resume, with data-loader
    workers and with several processes. Where an epoch ends within a batch over all processes, its
    last rows fill it up. (Accelerate would take its first.) GRPO's batches hold the next prompts;
    it draws the order in which it trains on the completions of one generation.

    Args:
        order: integers ``[shown]`` or ``[epochs, shown]``, row numbers of `train_dataset`, as for
            `OrderSampler`. None: the rows as they stand. All other arguments are the trainer's.

    Raises:
        InputError: the order does not fit the dataset or the epochs, or a setting of `BREAKING`.
    """

    args: Any
    state: Any
    accelerator: Any
    train_dataset: Any
    _train_batch_size: int

    def __init__(self, *args: Any, order: ArrayLike | None = None, **kwargs: Any) -> None:
        rows = _count(kwargs.get("train_dataset"))
        super().__init__(*args, **kwargs)
        check_settings(self.args)
        found = _count(self.train_dataset)
        if found is None:
            raise InputError(
                "train_dataset has no length: rows that are streamed cannot be put in order. Write "
                "them in order with `lessonplan order`, or load them as a whole."
            )
        if rows is not None and rows != found:
            raise InputError(
                f"The trainer made {counted(found, 'row')} of the {rows} of train_dataset; prepare "
                "them first, and order what comes out."
            )
        self._epochs = order_of_epochs(np.arange(found) if order is None else order)
        lowest, highest = int(self._epochs.min()), int(self._epochs.max())
        if lowest < 0 or highest >= found:
            raise InputError(
                f"order names rows from {lowest} to {highest}, but train_dataset has the {found} "
                "from 0 on."
            )
        trained = math.ceil(self.args.num_train_epochs)
        if 1 < len(self._epochs) < trained and self.args.max_steps <= 0:
            raise InputError(
                f"order has {len(self._epochs)} epochs, and num_train_epochs is {trained}."
            )

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        theirs = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if hasattr(theirs, "mini_repeat_count"):  # TRL's, of trainers that generate
            chunks = _InEpochOf(self, self._epochs, multiple_of=theirs.batch_size)
            return _Repeated(chunks, theirs)
        batch = self._train_batch_size * self.accelerator.num_processes
        whole = batch if self.accelerator.num_processes > 1 else 1
        return _InEpochOf(self, self._epochs, multiple_of=whole)


class _InEpochOf(OrderSampler):
    """An order in the epoch that a trainer is in.

    Accelerate's `set_epoch` does not reach the sampler of a run of several processes that was
    resumed within an epoch.
    """

    def __init__(self, trainer: Any, order: ArrayLike, multiple_of: int) -> None:
        super().__init__(order, multiple_of=multiple_of)
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        self.set_epoch(int(self.trainer.state.epoch or 0))
        yield from super().__iter__()


class _Repeated(Sampler[int]):
    """Prompts in order, repeated as TRL's `RepeatSampler` does: each for its completions, and each
    batch of them for the steps that are trained on one generation."""

    def __init__(self, prompts: OrderSampler, theirs: Any) -> None:
        self.prompts, self.batch_size = prompts, theirs.batch_size
        self.each, self.batches = theirs.mini_repeat_count, theirs.repeat_count

    def __len__(self) -> int:
        return len(self.prompts) * int(self.each * self.batches)

    def __iter__(self) -> Iterator[int]:
        rows = np.array(list(self.prompts)).reshape(-1, 1, self.batch_size, 1)
        shape = (len(rows), self.batches, self.batch_size, self.each)
        yield from np.broadcast_to(rows, shape).ravel().tolist()


def order_of_epochs(order: ArrayLike) -> NDArray[np.int64]:
    """Return an order as int64 ``[epochs, shown]``.

    Raises:
        InputError: it is empty, has other dimensions, or is no whole numbers.
    """
    array = np.asarray(order)
    if array.size == 0 or array.ndim > 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            "order must be whole numbers [shown] or [epochs, shown], at least one of them, not "
            f"{array.dtype} of shape {array.shape}."
        )
    return np.atleast_2d(array).astype(np.int64)


def check_settings(args: Any) -> None:
    """Refuse settings of a trainer that do not keep an order.

    Raises:
        InputError: names the setting and why.
    """
    for name, (values, why) in BREAKING.items():
        if getattr(args, name, None) in values:
            raise InputError(f"{name}={getattr(args, name)!r} does not keep the order: {why}.")
    # Trainers that generate shuffle in their sampler, which is replaced; others move the rows.
    if getattr(args, "shuffle_dataset", False) and not hasattr(args, "num_generations"):
        raise InputError("shuffle_dataset=True does not keep the order: it moves the rows.")


def _count(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None
