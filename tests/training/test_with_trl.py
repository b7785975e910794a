"""TRL's trainer against our own loop, and the order against plain slices of it.

Started by torchrun with a folder, this file is one of the processes of the test of several.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lessonplan.errors import InputError
from lessonplan.models.loading import load
from lessonplan.models.lora import load_adapter
from lessonplan.models.rows import Row, Text, token_rows
from lessonplan.training import Recipe, with_trl
from lessonplan.training.in_order import (
    FILLER,
    FollowsRecipe,
    lay_out,
    order_problems,
    ordered_dataset,
    position_weights,
)
from lessonplan.training.train import prepare
from lessonplan.training.trainer_args import ALLOWED, REFUSED
from lessonplan.training.tune import TuningError, TuningLog, tune
from lessonplan.training.with_trl import Spec, tune_with_trl, write_spec

trl = pytest.importorskip("trl", reason="needs the extra trl")

N = 11
WORDS = ["the", "disease", "of", "category", "Whitmore", "plague", "is", "which", "A", "B"]
RNG = np.random.default_rng(5)
ORDER = np.concatenate([RNG.permutation(N), RNG.permutation(N)])
SEEN = [4, 8, 12, 16, 20, 22]


def make_rows(tokenizer: Any) -> list[Row]:
    """Rows of right answers alone, no two of them alike."""
    rng = np.random.default_rng(6)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(low, high)))

    texts = [
        Text("Question: ", f"{i} {words(1, 12)}", "?\nAnswer:", [words(1, 5)]) for i in range(N)
    ]
    return token_rows(tokenizer, texts, max_tokens=200)


@pytest.fixture
def rows(byte_tokenizer) -> list[Row]:
    return make_rows(byte_tokenizer)


def recipe(**settings: Any) -> Recipe:
    adapter = {"rank": 4, "alpha": 8, **settings.pop("adapter", {})}
    base = {"batch_size": 4, "learning_rate": 5e-3, "threads": 1}
    return Recipe.model_validate({"adapter": adapter, **base, **settings})


def ours(folder: Path, rows: list[Row], order: np.ndarray, of: Recipe) -> tuple[TuningLog, Any]:
    _, engine, adapter = prepare(str(folder), of)
    return tune(engine, adapter, rows, order, of, seed=3, hidden=engine.lower(rows)), adapter


@contextmanager
def gradients() -> Iterator[list[torch.Tensor]]:
    """Collect the gradients that every optimiser step is made with.

    AdamW hides their scale, so equal losses alone do not show that it is right.
    """
    found: list[torch.Tensor] = []

    def note(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found.append(torch.cat([p.grad.flatten().clone() for p in parameters]))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


CASES = {
    "question weights": {"epochs": 2},
    "token weights": {"weight": "token", "schedule": "cosine", "warmup": 0.3, "max_grad_norm": 0},
    "accumulated": {"batch_size": 2, "accumulation": 3, "weight_decay": 0.1, "max_grad_norm": 0},
    "top layers": {"adapter": {"layers": 2}, "max_grad_norm": 0, "schedule": "constant"},
    "clipped hard": {"max_grad_norm": 0.01, "schedule": "wsd", "weight": "token"},
    "one batch, not full": {"batch_size": 32, "accumulation": 2, "learning_rate": 1e-2},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_our_own_loop(
    tiny_llama: Path, tmp_path: Path, rows: list[Row], case: str
) -> None:
    of = recipe(**CASES[case])
    with gradients() as expected_gradients:
        expected, adapter = ours(tiny_llama, rows, ORDER, of)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    seen: list[int] = []
    with gradients() as found_gradients:
        log = tune_with_trl(
            tiny_llama, rows, ORDER, of, seed=3, out=tmp_path / "out", on_step=seen.append
        )
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert seen == [*range(of.step_size, len(ORDER), of.step_size), len(ORDER)]
    np.testing.assert_allclose(log.losses, expected.losses, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(log.learning_rates, expected.learning_rates)
    torch.testing.assert_close(found_gradients, expected_gradients, atol=1e-5, rtol=1e-3)
    # The adapter is the same, and stands where ours would.
    network = load(str(tiny_llama)).network
    found = load_adapter(network, tmp_path / "out")
    adapter.save(tmp_path / "ours", str(tiny_llama))
    config = "adapter_config.json"
    assert (tmp_path / "out" / config).read_text() == (tmp_path / "ours" / config).read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        config,
        "adapter_model.safetensors",
        "trainer",
    ]
    assert found.modules.keys() == adapter.modules.keys()
    for name, module in adapter.modules.items():
        assert module.b.abs().max() > 0
        torch.testing.assert_close(found.modules[name].a, module.a, atol=5e-4, rtol=0)
        torch.testing.assert_close(found.modules[name].b, module.b, atol=5e-4, rtol=0)


def test_the_models_own_dropout_stays_off(tiny_llama: Path, tmp_path: Path, rows) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    log = tune_with_trl(folder, rows, ORDER[:9], recipe(), seed=3, out=tmp_path / "out")
    expected, _ = ours(tiny_llama, rows, ORDER[:9], recipe())
    np.testing.assert_allclose(log.losses, expected.losses, atol=1e-4, rtol=0)


def test_dropout_of_the_adapter_is_on(tiny_llama: Path, tmp_path: Path, rows) -> None:
    of = recipe(adapter={"dropout": 0.3})
    first, again = (
        tune_with_trl(tiny_llama, rows, ORDER[:9], of, seed=3, out=tmp_path / name).losses
        for name in ("one", "two")
    )
    np.testing.assert_array_equal(first, again)
    without, _ = ours(tiny_llama, rows, ORDER[:9], recipe())
    assert first[0] == pytest.approx(without.losses[0], abs=1e-4)  # B is zero at first
    assert abs(first[1:] - without.losses[1:]).max() > 1e-4


def test_from_an_adapter_on(tiny_llama: Path, tmp_path: Path, rows) -> None:
    of = recipe()
    _, adapter = ours(tiny_llama, rows, ORDER[:4], of)
    adapter.save(tmp_path / "first", "m")
    log = tune_with_trl(
        tiny_llama,
        rows,
        ORDER[:4],
        of,
        seed=9,
        out=tmp_path / "out",
        initial_adapter=tmp_path / "first",
    )
    _, engine, _ = prepare(str(tiny_llama), of)
    load_adapter_into(engine.network, adapter)
    sums, tokens = engine.option_sums([rows[i] for i in ORDER[:4]])
    assert log.losses[0] == pytest.approx(float((-sums / tokens).mean().detach()), abs=1e-4)
    with pytest.raises(InputError, match="another shape"):
        tune_with_trl(
            tiny_llama,
            rows,
            ORDER,
            recipe(adapter={"rank": 2}),
            seed=9,
            out=tmp_path / "other",
            initial_adapter=tmp_path / "first",
        )


def load_adapter_into(network: Any, adapter: Any) -> None:
    with torch.no_grad():
        for name, module in adapter.modules.items():
            network.get_submodule(name).a.copy_(module.a)
            network.get_submodule(name).b.copy_(module.b)


@pytest.mark.parametrize("batch", [1, 4, 5, 32])
def test_the_dataset_is_the_order(rows: list[Row], batch: int) -> None:
    questions = lay_out(rows, ORDER)
    found = ordered_dataset(questions, batch)
    assert len(found) % batch == 0
    assert len(found) - len(ORDER) < batch
    assert found["position"][:] == list(range(len(found)))
    assert found["question"][:] == [*ORDER.tolist(), *[FILLER] * (len(found) - len(ORDER))]
    for example, i in zip(found, ORDER, strict=False):
        row = rows[i]
        whole = [*row.ids.tolist(), int(row.target[-1])]
        labels = [-100] * len(whole)
        for place, token in zip(row.read, row.target, strict=True):
            labels[place + 1] = int(token)
        assert example["input_ids"] == whole
        assert example["labels"] == labels
    for filler in list(found)[len(ORDER) :]:
        assert len(filler["input_ids"]) == 2


def test_weights_of_a_step_add_up(rows: list[Row]) -> None:
    questions, size = lay_out(rows, ORDER), 8
    counts = np.array([len(rows[i].target) for i in ORDER])
    even = position_weights(questions, recipe(accumulation=2))
    by_token = position_weights(questions, recipe(accumulation=2, weight="token"))
    for start in range(0, len(ORDER), size):
        step = slice(start, start + size)
        np.testing.assert_allclose(even[step], 1 / size)
        np.testing.assert_allclose(by_token[step], counts[step] / counts[step].sum())


def test_resumed_in_the_middle_of_an_epoch(tiny_llama: Path, tmp_path: Path, rows) -> None:
    of = recipe(epochs=2, adapter={"dropout": 0.1})
    given: dict[str, Any] = {"seed": 3, "out": tmp_path / "out", "save_steps": 2}
    whole = tune_with_trl(tiny_llama, rows, ORDER, of, **given)
    weights = tmp_path / "out" / "adapter_model.safetensors"
    expected = weights.read_bytes()
    weights.unlink()
    trainer = tmp_path / "out" / "trainer"
    shutil.rmtree(trainer / "checkpoint-6")
    (trainer / "checkpoint-4" / "lessonplan.json").unlink()  # as if it had been cut off
    seen: list[int] = []
    given |= {"resume": True, "on_step": seen.append}
    resumed = tune_with_trl(tiny_llama, rows, ORDER, of, **given)
    assert seen == [12, 16, 20, 22]  # from the checkpoint after 8 of 11 questions of epoch 1
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert weights.read_bytes() == expected
    del seen[:]
    again = tune_with_trl(tiny_llama, rows, ORDER, of, **given)  # there is nothing left to do
    np.testing.assert_array_equal(again.losses, whole.losses)
    assert seen == []
    assert weights.read_bytes() == expected
    with pytest.raises(InputError, match="another order, recipe or seed"):
        tune_with_trl(tiny_llama, rows, ORDER[::-1].copy(), of, **given)
    with pytest.raises(InputError, match="not an empty folder"):
        tune_with_trl(tiny_llama, rows, ORDER, of, **given | {"resume": False})


class Shuffled(FollowsRecipe):
    """A trainer with the default of most: a random order."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        generator = torch.Generator().manual_seed(1)
        return torch.utils.data.RandomSampler(range(len(ORDER) + 2), generator=generator)


class Halved(FollowsRecipe):
    """Each process goes through a half of its own, from its beginning to its end."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        half = (len(ORDER) + 2) // 2
        pairs = np.arange(2 * half).reshape(2, -1, 2)
        return pairs.transpose(1, 0, 2).ravel().tolist()


class Strided(FollowsRecipe):
    """Every second question for each process, as `DistributedSampler` hands them out."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return np.arange(len(ORDER) + 2).reshape(-1, 2, 2).transpose(0, 2, 1).ravel().tolist()


def test_a_shuffling_trainer_is_caught(
    tiny_llama: Path, tmp_path: Path, rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_trl, "FollowsRecipe", Shuffled)
    with pytest.raises(TuningError, match="did not keep the order: step 1 held other questions"):
        tune_with_trl(tiny_llama, rows, ORDER, recipe(), seed=3, out=tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


class OwnRates(FollowsRecipe):
    """A trainer with learning rates of its own."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        return self.lr_scheduler


class EndsEarly(FollowsRecipe):
    """A trainer that reads a part of its dataset."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return range(len(ORDER) - 6)


class StopsEarly(FollowsRecipe):
    """A trainer that something stops."""

    def _end_step(self) -> None:
        super()._end_step()
        self.control.should_training_stop = self.state.global_step == 2


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (OwnRates, r"learning rate at step 2 is 0\.005, the recipe's 0\.0041"),
        (EndsEarly, "plans 4 steps, the recipe 6"),
        (StopsEarly, "left out step 4 of 6"),
    ],
)
def test_other_rates_and_ends_are_caught(
    tiny_llama: Path, tmp_path: Path, rows, monkeypatch, mutant: type, message: str
) -> None:
    monkeypatch.setattr(with_trl, "FollowsRecipe", mutant)
    with pytest.raises(TuningError, match=message):
        tune_with_trl(tiny_llama, rows, ORDER, recipe(), seed=3, out=tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_the_check_of_the_order() -> None:
    of = recipe(batch_size=2, accumulation=2)
    order = np.arange(6)
    assert order_problems({0: [0, 1, 2, 3], 1: [4, 5, FILLER, FILLER]}, order, of) == []
    assert order_problems({1: np.array([4, 5])}, order, of) == []
    for fed, problem in (
        ([0, 1, 3, 2], "step 1 held another order"),
        ([0, 1, 2, 4], "step 1 held other questions"),
        ([0, 1, 2], "step 1 held other questions"),
        ([0, 1, 2, 3, 3], "step 1 held other questions"),
    ):
        assert len(found := order_problems({0: fed}, order, of)) == 1
        assert found[0].startswith(problem)
    assert len(order_problems({1: [4, 5, 0, 1], 0: [0, 1, 2, 3]}, order, of)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"packing": True}, "packing is refused: it changes which questions"),
        ({"group_by_length": True}, "group_by_length is refused: it changes which questions"),
        ({"train_sampling_strategy": "batch_rebalance"}, "refused: it changes which questions"),
        ({"dataloader_drop_last": True}, "leaves out the last questions"),
        ({"auto_find_batch_size": True}, "refused: it changes which questions"),
        ({"accelerator_config": {"even_batches": True}}, "even_batches gives some of them twice"),
        ({"ignore_data_skip": True}, "begin anew"),
        ({"loss_type": "dft"}, "changes the loss"),
        ({"learning_rate": 1}, "learning_rate is refused: the recipe says it"),
        ({"logging_step": 1}, "Did you mean 'logging_steps'"),
        ({"optim": "sgd"}, "optim must be"),
        ({"deepspeed": {"scheduler": {}}}, "deepspeed is for GPUs"),
        ({"fsdp": True}, "fsdp is for GPUs, and device is cpu"),
        ({"ddp_backend": "smoke"}, "The trainer refuses: "),
    ],
)
def test_refused_arguments(
    tiny_llama: Path, tmp_path: Path, rows, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tune_with_trl(
            tiny_llama, rows, ORDER, recipe(), seed=0, out=tmp_path / "o", trainer_args=arguments
        )


def test_every_argument_of_the_trainer_is_judged_once() -> None:
    known = set(trl.SFTConfig.__dataclass_fields__)
    assert set(ALLOWED) <= known
    assert not set(ALLOWED) & set(REFUSED)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"loss": "choice"}, {}, "loss: choice is for trainer: lessonplan alone"),
        ({"batch_size": 5}, {"processes": 2}, "5 questions cannot be split evenly over 2"),
        ({"device": "cuda:3"}, {}, "CUDA_VISIBLE_DEVICES"),
        (
            {"device": "cuda"},
            {"trainer_args": {"deepspeed": {"scheduler": {}}}},
            "leave out 'scheduler'",
        ),
        (
            {"device": "cuda"},
            {"trainer_args": {"deepspeed": "/no/such/file.json"}},
            "file.json cannot be read",
        ),
    ],
)
def test_refused_recipes(tiny_llama: Path, tmp_path: Path, rows, settings, given, message) -> None:
    with pytest.raises(InputError, match=message):
        tune_with_trl(
            tiny_llama, rows, ORDER, recipe(**settings), seed=0, out=tmp_path / "o", **given
        )


def test_refused_rows(tiny_llama: Path, tmp_path: Path, byte_tokenizer, rows) -> None:
    two = token_rows(byte_tokenizer, [Text("", "A", "?", ["B", "C"])], max_tokens=99)
    with pytest.raises(InputError, match="one option a question"):
        tune_with_trl(tiny_llama, two, np.array([0]), recipe(), seed=0, out=tmp_path / "o")
    with pytest.raises(InputError, match="name some of the 11 rows"):
        tune_with_trl(tiny_llama, rows, np.array([11]), recipe(), seed=0, out=tmp_path / "o")


def test_the_extra_is_missing(tiny_llama, tmp_path, rows, monkeypatch) -> None:
    monkeypatch.setattr(with_trl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lessonplan\[trl\]'"):
        tune_with_trl(tiny_llama, rows, ORDER, recipe(), seed=0, out=tmp_path / "o")


def test_a_loss_that_is_no_number_ends_it(tiny_llama: Path, tmp_path: Path, rows) -> None:
    of = recipe(learning_rate=1e30, max_grad_norm=0, schedule="constant")
    with pytest.raises(TuningError, match=r"became (nan|inf) at step [234] of 6"):
        tune_with_trl(tiny_llama, rows, ORDER, of, seed=0, out=tmp_path / "o")


def test_four_bit_weights(tmp_path: Path, rows, byte_tokenizer) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path / "llama"
    shape = {"vocab_size": 600, "hidden_size": 128, "intermediate_size": 192}
    config = LlamaConfig(**shape, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    of = recipe(quantization="nf4")
    log = tune_with_trl(folder, rows, ORDER, of, seed=3, out=tmp_path / "out")
    expected, _ = ours(folder, rows, ORDER, of)
    np.testing.assert_allclose(log.losses, expected.losses, atol=1e-4, rtol=0)
    found = load_adapter(load(str(folder)).network, tmp_path / "out")
    assert {p.dtype for p in found.parameters} == {torch.float32}


# Two batches of two questions for each of two processes are a step; 22 exposures leave a step of
# six, 18 one of two, whose second process has fillers alone.
SHARED = {"batch_size": 4, "accumulation": 2, "epochs": 2, "max_grad_norm": 0}


def test_two_processes_keep_the_order(tiny_llama: Path, tmp_path: Path, rows) -> None:
    of = recipe(**SHARED)
    write_spec(
        tiny_llama, rows, ORDER, of, seed=3, out=tmp_path / "out", save_steps=1, data_workers=2
    )
    run_processes(tmp_path)
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    tokens = [[*row.ids.tolist(), int(row.target[-1])] for row in rows]
    for name, order, begin in (
        ("whole", ORDER, 0),
        ("resumed", ORDER, 8),
        ("short", ORDER[:18], 0),
        ("by token", ORDER, 0),
    ):
        for rank in range(2):
            fed = [[named(line, tokens) for line in batch] for batch in found[rank][name]["fed"]]
            padded = [*order.tolist(), *[FILLER] * (-len(order) % 4)]
            assert fed == [
                padded[first + 2 * rank : first + 2 * rank + 2]
                for first in range(begin, len(padded), 4)
            ], (name, rank)
        weight = "token" if name == "by token" else "question"
        with gradients() as expected_gradients:
            expected, adapter = ours(tiny_llama, rows, order, recipe(**SHARED, weight=weight))
        for rank in range(2):
            np.testing.assert_allclose(
                found[rank][name]["losses"], expected.losses, atol=1e-4, rtol=0
            )
            moved = torch.load(tmp_path / f"gradients {name} {rank}.pt")
            past = begin // 8
            torch.testing.assert_close(moved, expected_gradients[past:], atol=1e-5, rtol=1e-3)
        saved = load_adapter(load(str(tiny_llama)).network, tmp_path / f"adapter {name}")
        for key, module in adapter.modules.items():
            torch.testing.assert_close(saved.modules[key].b, module.b, atol=5e-4, rtol=0)
    for rank in range(2):
        assert "step 1 held other questions" in found[rank]["Shuffled"]["error"]
        assert "step 1 held other questions" in found[rank]["Halved"]["error"]
        assert "step 1 held another order" in found[rank]["Strided"]["error"]


def named(line: list[int], tokens: list[list[int]]) -> int:
    """Return the question whose tokens were fed, padded with zeros on the right."""
    for i, whole in enumerate(tokens):
        if line[: len(whole)] == whole and not any(line[len(whole) :]):
            return i
    assert line[0] == line[1]
    assert not any(line[2:])
    return FILLER


def run_processes(folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with (
        (folder / "output.txt").open("w") as output,
        subprocess.Popen(
            [*command, __file__, str(folder)], env=environment, stdout=output, stderr=output
        ) as started,
    ):
        try:
            status = started.wait(timeout=150)
        except subprocess.TimeoutExpired:  # a process waits for the other in vain
            started.terminate()  # and so its processes; killed, it would leave them behind
            raise
    assert status == 0, (folder / "output.txt").read_text()[-3000:]


def be_one_process(folder: Path) -> None:
    """Run what the test asks for and write down what this process fed to the model."""
    rank = int(os.environ["RANK"])
    fed: list[list[list[int]]] = []

    def watch(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding):
            fed.append(arguments[0].tolist())

    torch.nn.modules.module.register_module_forward_pre_hook(watch)
    spec = Spec.model_validate_json((folder / "out" / "trainer" / "spec.json").read_text())
    with np.load(spec.questions) as arrays:
        arrays = dict(arrays)
    results: dict[str, Any] = {}

    def go(name: str, exposures: int = len(ORDER), **changes: Any) -> None:
        fed.clear()
        questions = with_trl.Questions(**{**arrays, "order": arrays["order"][:exposures]})
        changed = spec.model_copy(update={"out": folder / name, **changes})
        try:
            with gradients() as moved:
                log = with_trl._run(changed, questions)
        except TuningError as error:
            results[name] = {"error": str(error)}
        else:
            results[name] = {"losses": log.losses.tolist(), "fed": list(fed)}
            torch.save(moved, folder / f"gradients {name} {rank}.pt")
            if rank == 0:
                target = folder / f"adapter {name}"
                target.mkdir()
                for file in changed.out.glob("adapter_*"):
                    shutil.copy(file, target)

    go("whole", out=folder / "out")
    torch.distributed.barrier()
    if rank == 0:
        for steps in (2, 3):
            shutil.rmtree(folder / "out" / "trainer" / f"checkpoint-{steps}")
    torch.distributed.barrier()
    go("resumed", out=folder / "out", resume=True)
    go("short", exposures=18, save_steps=0)
    by_token = spec.recipe.model_copy(update={"weight": "token"})
    go("by token", recipe=by_token, save_steps=0, data_workers=0)
    for mutant in (Shuffled, Halved, Strided):
        with_trl.FollowsRecipe = mutant
        go(mutant.__name__, save_steps=0, data_workers=0)
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_started_from_here(tiny_llama: Path, tmp_path: Path, rows, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    of = recipe(**SHARED)
    seen: list[int] = []
    log = tune_with_trl(
        tiny_llama, rows, ORDER, of, seed=3, out=tmp_path, processes=2, on_step=seen.append
    )
    assert seen == [8, 16, 22]
    expected, _ = ours(tiny_llama, rows, ORDER, of)
    np.testing.assert_allclose(log.losses, expected.losses, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(log.learning_rates, expected.learning_rates)
    load_adapter(load(str(tiny_llama)).network, tmp_path)


def says(kind: str, reason: str) -> str:
    failure = json.dumps({"kind": kind, "reason": reason})
    return f"echo '{failure}' > $D/failure.json; exit 1"


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (says("InputError", "no such thing"), InputError, "no such thing"),
        (says("TuningError", "not a number"), TuningError, "not a number"),
        ("exit 3", TuningError, r"ended with status 3\. .*output\.txt"),
        ("exit 0", TuningError, "ended with status 0"),
    ],
)
def test_how_a_process_ends(tiny_llama, tmp_path, rows, monkeypatch, script, kind, message) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nD={tmp_path}/out/trainer\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(kind, match=message):
        tune_with_trl(tiny_llama, rows, ORDER, recipe(), seed=0, out=tmp_path / "out", processes=2)


def test_what_on_step_raises_ends_the_processes(tiny_llama, tmp_path, rows, monkeypatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho a line of a library\necho seen 4\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))

    def stop(seen: int) -> None:
        raise KeyboardInterrupt(seen)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="4"):
        tune_with_trl(
            tiny_llama,
            rows,
            ORDER,
            recipe(),
            seed=0,
            out=tmp_path / "out",
            processes=2,
            on_step=stop,
        )
    assert time.monotonic() - started < 30


def test_a_run_for_several_gpus_is_written_down_where_they_are(
    tiny_llama: Path, tmp_path: Path, rows, monkeypatch
) -> None:
    """How many processes there will be is for torchrun to say."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    of = recipe(device="cuda", optimizer="paged_adamw_8bit")
    file = write_spec(tiny_llama, rows, ORDER, of, seed=3, out=tmp_path / "out")
    spec = Spec.model_validate_json(file.read_text())
    assert with_trl._arguments(spec)["optim"] == "paged_adamw_8bit"
    with pytest.raises(InputError, match="4 GPUs are visible to one process"):
        tune_with_trl(tiny_llama, rows, ORDER, of, seed=3, out=tmp_path / "other")


def test_the_command(tiny_llama: Path, tmp_path: Path, rows, capsys) -> None:
    assert with_trl.main([]) == 2
    assert "usage" in capsys.readouterr().err
    spec = write_spec(tiny_llama, rows, ORDER, recipe(), seed=3, out=tmp_path / "out")
    assert with_trl.main([str(spec)]) == 0
    assert capsys.readouterr().out.split() == " ".join(f"seen {n}" for n in SEEN).split()
    expected, _ = ours(tiny_llama, rows, ORDER, recipe())
    log = json.loads((spec.parent / "log.json").read_text())
    np.testing.assert_allclose(log["losses"], expected.losses, atol=1e-4, rtol=0)
    spec.write_text(spec.read_text().replace('"loss": "answer"', '"loss": "choice"'))
    assert with_trl.main([str(spec)]) == 2
    assert "loss: choice" in capsys.readouterr().err
    failure = json.loads((spec.parent / "failure.json").read_text())
    assert failure["kind"] == "InputError"
    spec.write_text("{}")
    assert with_trl.main([str(spec)]) == 2
    assert "no specification of a run" in capsys.readouterr().err


if __name__ == "__main__":
    be_one_process(Path(sys.argv[1]))
