"""`OrderSampler` against plain slices of the order."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lessonplan.errors import InputError
from lessonplan.integrations import OrderSampler

ORDER = np.stack([np.random.default_rng(i).permutation(11) for i in range(2)])


def flat(loader: DataLoader) -> list[int]:
    return [int(i) for batch in loader for i in batch]


def test_epochs_follow_one_another() -> None:
    for workers in (0, 2):
        sampler = OrderSampler(ORDER)
        loader = DataLoader(range(11), batch_size=4, sampler=sampler, num_workers=workers)
        assert [flat(loader) for _ in range(3)] == [*ORDER.tolist(), ORDER[0].tolist()]
        sampler.set_epoch(1)
        assert flat(loader) == ORDER[1].tolist()


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 5))
def test_batches_of_all_processes_are_the_next_rows(n: int, world: int, size: int) -> None:
    order = np.random.default_rng(n).permutation(n)
    samplers = [OrderSampler(order, rank=rank, world_size=world) for rank in range(world)]
    ranks = [list(DataLoader(range(n), batch_size=size, sampler=sampler)) for sampler in samplers]
    filled = [*order.tolist(), *np.resize(order[-(-n % world) :], -n % world).tolist()]
    for step, batches in enumerate(zip(*ranks, strict=True)):
        held = sorted(int(i) for batch in batches for i in batch)
        assert held == sorted(filled[step * size * world : (step + 1) * size * world])


@pytest.mark.parametrize("done", range(0, 12, 3))
def test_resumed_within_an_epoch(done: int) -> None:
    sampler = OrderSampler(ORDER)
    sampler.set_epoch(1)
    rows = iter(sampler)
    for _ in range(min(done, 11)):
        next(rows)
    resumed = OrderSampler(ORDER)
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_epoch(1)  # as a loop over epochs says it
    assert list(resumed) == ORDER[1, done:].tolist()
    assert list(resumed) == ORDER[0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("n", [5, 8])
def test_a_place_saved_after_any_batch_is_gone_on_from(n: int, workers: int) -> None:
    """A loader draws the last rows, and with workers many more, before it gives them out."""
    order = np.stack([np.random.default_rng(i).permutation(n) for i in range(2)])
    wanted = [batch.tolist() for epoch in order for batch in np.split(epoch, range(2, n, 2))]
    for saved in range(1, len(wanted) + 1):
        sampler, trained = OrderSampler(order), []
        loader = DataLoader(range(n), batch_size=2, sampler=sampler, num_workers=workers)
        state = None
        while state is None:
            seen = 0
            for batch in loader:
                trained.append(batch.tolist())
                seen += len(batch)
                if len(trained) == saved:
                    state = sampler.state_dict(seen=seen)
                    break
        resumed = OrderSampler(order)
        resumed.load_state_dict(state)
        loader = DataLoader(range(n), batch_size=2, sampler=resumed, num_workers=workers)
        while len(trained) < len(wanted):
            trained += [batch.tolist() for batch in loader]
        assert trained[: len(wanted)] == wanted


def test_another_number_of_processes() -> None:
    order = np.arange(12)
    state = OrderSampler(order, world_size=2).state_dict(seen=6)
    resumed = [OrderSampler(order, rank=rank, world_size=3) for rank in range(3)]
    for sampler in resumed:
        sampler.load_state_dict(state)
    assert [list(sampler) for sampler in resumed] == [[6, 9], [7, 10], [8, 11]]


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="another order"):
        OrderSampler(ORDER).load_state_dict(OrderSampler(ORDER[::-1]).state_dict())
    with pytest.raises(InputError, match="whole numbers"):
        OrderSampler([])
    with pytest.raises(InputError, match="no process 2 of 2"):
        OrderSampler(ORDER, rank=2, world_size=2)
    state = OrderSampler(ORDER).state_dict(seen=3)
    with pytest.raises(InputError, match="cannot be there"):
        OrderSampler(ORDER, world_size=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_with_torchdata(workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

    def loader() -> DataLoader:
        sampler = OrderSampler(ORDER[0])
        return stateful.StatefulDataLoader(
            list(range(11)), batch_size=2, sampler=sampler, num_workers=workers
        )

    first = loader()
    batches = iter(first)
    seen = [int(i) for _ in range(2) for i in next(batches)]
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    assert seen + flat(resumed) == ORDER[0].tolist()


def test_torch_is_imported_on_use() -> None:
    code = "import sys, lessonplan.integrations; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
