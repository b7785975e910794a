"""The same fine-tuning through TRL's SFTTrainer, for what outgrows one process.

Several GPUs, DeepSpeed and FSDP come with the trainer; the order stays ours. All epochs are laid
out as one dataset in the order in which they are trained, read from its beginning to its end, and
every step is checked against the order before its weights move.

    python -m torch.distributed.run --nproc-per-node 2 -m lessonplan.training.with_trl SPEC.json
    accelerate launch --config_file CONFIG -m lessonplan.training.with_trl SPEC.json

run what `write_spec` wrote; `tune_with_trl` does the first by itself when asked for processes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lessonplan.errors import InputError, first_line
from lessonplan.models.loading import (
    check_device,
    check_length,
    fingerprint,
    load,
    release,
    resolve,
)
from lessonplan.models.rows import Row
from lessonplan.seeds import stream_seed
from lessonplan.training.in_order import (
    MARK,
    FollowsRecipe,
    Questions,
    collate,
    lay_out,
    ordered_dataset,
    write_json,
)
from lessonplan.training.recipe import Recipe, Strict, against_tuning
from lessonplan.training.trainer_args import check_trainer_args
from lessonplan.training.tune import TuningError, TuningLog

# Where the trainer keeps what is its own, inside the folder of the adapter.
TRAINER = "trainer"
SPEC, QUESTIONS, LOG, FAILURE = "spec.json", "questions.npz", "log.json", "failure.json"


class Spec(Strict):
    """One run, as it is handed to the processes that do it. Paths are absolute.

    Attributes:
        questions: the file that `Questions` were saved in.
        others: as the arguments of `tune_with_trl`.
    """

    model: str
    questions: Path
    recipe: Recipe
    seed: int
    out: Path
    resume: bool = False
    initial_adapter: Path | None = None
    data_workers: int = 0
    save_steps: int = 0
    trainer_args: dict[str, Any] = {}
    trust_remote_code: bool = False


def tune_with_trl(
    model: str | Path,
    rows: Sequence[Row],
    order: NDArray[np.int64],
    recipe: Recipe,
    *,
    seed: int,
    out: str | Path,
    processes: int | None = None,
    resume: bool = False,
    initial_adapter: Path | None = None,
    data_workers: int = 0,
    save_steps: int = 0,
    trainer_args: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> TuningLog:
    """Fine-tune an adapter on rows in exactly the given order, with TRL's trainer.

    Losses, learning rates and weights are those of `lessonplan.training.tune.tune` (up to rounding
    and, under dropout, its draws), whatever the number of processes: each optimiser step holds the
    next ``recipe.step_size`` questions, each forward pass ``recipe.batch_size`` of them over all
    processes together.

    Args:
        model: what `lessonplan.models.loading.resolve` understands.
        rows: one row a question, the answer alone its only option.
        order: int64 ``[exposures]``, row numbers.
        recipe: the settings; ``loss: answer`` alone.
        seed: of the initial adapter and of dropout.
        out: folder for the adapter, in PEFT's format, empty unless `resume`. The trainer's
            checkpoints and the log are kept in its subfolder ``trainer``.
        processes: how many to start on this machine. None: this process alone, or all those that
            torchrun or ``accelerate launch`` started it with.
        resume: go on from the last whole checkpoint in `out`, or begin where there is none.
        initial_adapter: folder of an adapter of the recipe's shape to start from. None: the one
            that `seed` gives.
        data_workers: further processes for each process that put batches together.
        save_steps: optimiser steps between checkpoints; 0 for none.
        trainer_args: further arguments of TRL's `SFTConfig`, of those in `ALLOWED`, such as
            deepspeed or fsdp.
        trust_remote_code: run code that lies beside the model's weights.
        on_step: called with the number of questions seen so far.

    Raises:
        InputError: trl is not installed, or an argument would change the order or the loss.
        TuningError: the loss is not finite, a process failed, or a step did not hold the questions
            that the order says.
    """
    spec = _spec(
        model,
        recipe,
        seed=seed,
        out=out,
        resume=resume,
        initial_adapter=initial_adapter,
        data_workers=data_workers,
        save_steps=save_steps,
        trainer_args=trainer_args,
        trust_remote_code=trust_remote_code,
    )
    started = _processes()
    asked = started if processes is None else processes
    check(spec, asked)
    questions = lay_out(rows, order)
    if os.environ.get("RANK", "0") == "0" and not resume:
        _check_empty(spec.out)
    if asked == started:
        return _run(spec, questions, on_step)
    if started > 1:
        raise InputError(
            f"processes: {asked}, but this process is one of {started} that were started together."
        )
    return _launch(_write(spec, questions), asked, on_step)


def write_spec(
    model: str | Path,
    rows: Sequence[Row],
    order: NDArray[np.int64],
    recipe: Recipe,
    *,
    seed: int,
    out: str | Path,
    **settings: Any,
) -> Path:
    """Write a run down for torchrun or ``accelerate launch`` and return the file to give them.

    Arguments and errors as for `tune_with_trl`. With ``resume=True`` the same command can be given
    again after an interruption, and goes on from the last checkpoint.
    """
    spec = _spec(model, recipe, seed=seed, out=out, **settings)
    check(spec, processes=None)
    if not spec.resume:
        _check_empty(spec.out)
    return _write(spec, lay_out(rows, order))


def check(spec: Spec, processes: int | None) -> None:
    """Refuse what the trainer cannot do as the recipe says.

    Args:
        processes: how many there will be; None where only the one who starts them knows.

    Raises:
        InputError: names the setting and why.
    """
    for package in ("trl", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"trainer: trl needs {package}: pip install 'lessonplan[trl]'.")
    recipe = spec.recipe
    if problem := against_tuning(recipe):
        raise InputError(f"{problem}.")
    if recipe.loss != "answer":
        raise InputError(
            f"loss: {recipe.loss} is for trainer: lessonplan alone. A choice compares all options "
            "of a question, and the trainer reads one answer a question; take loss: answer."
        )
    if processes is not None and (processes < 1 or recipe.batch_size % processes):
        raise InputError(
            f"batch_size: {recipe.batch_size} questions cannot be split evenly over {processes} "
            "processes; it counts those of all processes together."
        )
    if recipe.device not in ("cpu", "cuda", "cuda:0"):
        raise InputError(
            f"device: {recipe.device} cannot be chosen with trainer: trl, where each process takes "
            "one of its own; take cpu or cuda, and CUDA_VISIBLE_DEVICES for certain GPUs."
        )
    if recipe.device != "cpu" and processes == 1 and torch.cuda.device_count() > 1:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible to one process, which would split its "
            "batches over them. Ask for processes, or set CUDA_VISIBLE_DEVICES=0."
        )
    check_trainer_args(spec.trainer_args, device=recipe.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a specification in the processes that torchrun or ``accelerate launch`` started."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1:
        print("usage: python -m lessonplan.training.with_trl SPEC.json", file=sys.stderr)
        return 2
    file = Path(given[0])
    first = os.environ.get("RANK", "0") == "0"

    def tell(seen: int) -> None:
        if first:
            print(f"seen {seen}", flush=True)

    try:
        spec, questions = _read(file)
        check(spec, _processes())
        _run(spec, questions, tell)
    except (InputError, TuningError) as error:
        if first:
            write_json(
                file.with_name(FAILURE), {"kind": type(error).__name__, "reason": str(error)}
            )
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _spec(
    model: str | Path,
    recipe: Recipe,
    *,
    seed: int,
    out: str | Path,
    resume: bool = False,
    initial_adapter: Path | None = None,
    data_workers: int = 0,
    save_steps: int = 0,
    trainer_args: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Spec:
    # Processes may be started from another folder.
    local = Path(model).expanduser()
    folder = Path(out).expanduser().absolute()
    return Spec(
        model=str(local.absolute()) if local.exists() else str(model),
        questions=folder / TRAINER / QUESTIONS,
        recipe=recipe,
        seed=seed,
        out=folder,
        resume=resume,
        initial_adapter=initial_adapter.expanduser().absolute() if initial_adapter else None,
        data_workers=data_workers,
        save_steps=save_steps,
        trainer_args=dict(trainer_args or {}),
        trust_remote_code=trust_remote_code,
    )


def _write(spec: Spec, questions: Questions) -> Path:
    file = spec.out / TRAINER / SPEC
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(spec.questions, **vars(questions))
    try:
        text = spec.model_dump_json(indent=1)
    except ValueError as error:
        raise InputError(
            f"trainer_args can be handed to other processes as JSON only: {first_line(error)}"
        ) from error
    file.write_text(text, encoding="utf-8")
    return file


def _read(file: Path) -> tuple[Spec, Questions]:
    try:
        spec = Spec.model_validate_json(file.read_text(encoding="utf-8"))
        with np.load(spec.questions) as arrays:
            return spec, Questions(**arrays)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} is no specification of a run: {error}") from error


def _launch(file: Path, processes: int, on_step: Callable[[int], None] | None) -> TuningLog:
    """Start the processes of a specification, wait for them, and return the log."""
    folder = file.parent
    for name in (LOG, FAILURE):
        (folder / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "lessonplan.training.with_trl", str(file)]
    with (
        (folder / "output.txt").open("w", encoding="utf-8") as output,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True) as started,
    ):
        assert started.stdout is not None
        try:
            for line in started.stdout:
                if line.startswith("seen ") and on_step:
                    on_step(int(line.split()[1]))
        except BaseException:  # Ctrl-C, or whatever on_step raised: leave no process behind
            started.terminate()
            raise
    if started.returncode == 0 and (folder / LOG).is_file():
        return _read_log(folder / LOG)
    if (folder / FAILURE).is_file():
        failure = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        kind = InputError if failure["kind"] == "InputError" else TuningError
        raise kind(failure["reason"])
    raise TuningError(
        f"A process of the trainer ended with status {started.returncode}. Its last words are in "
        f"{folder / 'output.txt'}."
    )


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """Leave the caller's random state alone: the trainer seeds every generator."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _refusals() -> Iterator[None]:
    """Pass on what the trainer refuses of `trainer_args`."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"The trainer refuses: {first_line(error)}") from error


@_randomness_kept()
def _run(
    spec: Spec, questions: Questions, on_step: Callable[[int], None] | None = None
) -> TuningLog:
    """Train in this process, and in those that were started together with it."""
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    if not hasattr(SFTTrainer, "loss_is_scaled_for_ga"):
        # Older ones would divide our loss, which is scaled already, by the batches in a step.
        raise InputError("trainer: trl needs a newer Transformers: pip install 'lessonplan[trl]'.")
    recipe = spec.recipe
    torch.set_num_threads(recipe.threads)
    run = _digest(spec, questions)
    checkpoint = _last_checkpoint(spec.out / TRAINER, run) if spec.resume else None
    trainer_type = type("OrderedTrainer", (FollowsRecipe, SFTTrainer), {})
    with tempfile.TemporaryDirectory(prefix="lessonplan-") as scratch:
        with _refusals():
            # Before the model, whose weights DeepSpeed may split as they are read.
            arguments = SFTConfig(**_arguments(spec))
        network, tokenizer = _network(spec, arguments, Path(scratch))
        adapters = {name: p.data for name, p in network.named_parameters() if p.requires_grad}
        with _refusals():
            trainer = trainer_type(
                model=network,
                args=arguments,
                train_dataset=ordered_dataset(questions, recipe.batch_size),
                data_collator=collate,
                processing_class=tokenizer,
            )
        if recipe.quantization != "none":
            # TRL rounds the adapters of quantised models to bfloat16; ours are float32.
            for name, parameter in network.named_parameters():
                if name in adapters:
                    parameter.data = adapters[name].to(parameter.device)
        trainer.follow(questions, recipe, run, on_step)
        if checkpoint is not None:
            mark = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
            trainer.losses[: len(mark["losses"])] = mark["losses"]
        trainer.remove_callback(PrinterCallback)  # standard output is for our own lines
        torch.manual_seed(stream_seed(spec.seed, "dropout", arguments.process_index))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if np.isnan(trainer.losses).any():
            missed = int(np.isnan(trainer.losses).argmax()) + 1
            raise TuningError(f"The trainer left out step {missed} of {len(trainer.losses)}.")
        _save(trainer, spec.out, Path(scratch))
    log = TuningLog(trainer.losses, trainer.rates)
    if arguments.process_index == 0:
        write_json(
            spec.out / TRAINER / LOG,
            {"losses": log.losses.tolist(), "learning_rates": log.learning_rates.tolist()},
        )
    del trainer, network, adapters
    release()  # the trainer stands in a circle with its data loader
    return log


def _arguments(spec: Spec) -> dict[str, Any]:
    """Return the arguments of `SFTConfig`: the recipe's, and nothing left to chance or defaults."""
    recipe, on_cpu = spec.recipe, spec.recipe.device == "cpu"
    arguments: dict[str, Any] = {
        "output_dir": str(spec.out / TRAINER),
        "use_cpu": on_cpu,
        "seed": stream_seed(spec.seed, "dropout") % 2**32,
        # The order.
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "per_device_train_batch_size": recipe.batch_size // _processes(),
        "gradient_accumulation_steps": recipe.accumulation,
        "dataloader_drop_last": False,
        "packing": False,
        "max_length": None,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # The dataset is whole batches already: nothing is left for even_batches to even out.
        "accelerator_config": {
            "split_batches": False,
            "dispatch_batches": False,
            "even_batches": False,
        },
        # The step.
        "learning_rate": recipe.learning_rate,
        "optim": "adamw_torch" if recipe.optimizer == "adamw" else recipe.optimizer,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": False,
        "fp16": False,
        "average_tokens_across_devices": False,
        # The machine.
        "activation_checkpointing": False,
        "dataloader_num_workers": spec.data_workers,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,
        "save_strategy": "steps" if spec.save_steps else "no",
        "save_steps": spec.save_steps or 500,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    if on_cpu and _processes() > 1:
        arguments["ddp_backend"] = "gloo"
    return arguments | spec.trainer_args


def _network(spec: Spec, arguments: Any, scratch: Path) -> tuple[Any, Any]:
    """Return the model with PEFT's adapter, which starts as our own does, and the tokenizer."""
    from peft import PeftModel

    from lessonplan.models.lora import add_adapter, load_weights, remove_adapter

    recipe, shape = spec.recipe, spec.recipe.adapter
    check_device(recipe.device)  # where there is no GPU, the trainer would take the CPU
    folder = resolve(spec.model)
    check_length(folder, recipe.max_tokens, spec.model)
    loaded = load(
        str(folder),
        dtype=recipe.dtype,
        quantization=recipe.quantization,
        # The trainer moves the weights to the GPU itself, except quantised ones.
        device="cpu" if recipe.quantization == "none" else str(arguments.device),
        trust_remote_code=spec.trust_remote_code,
    )
    layers = None if shape.layers == "all" else shape.layers
    adapter = add_adapter(
        loaded.network, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout, layers=layers
    )
    if spec.initial_adapter is None:
        adapter.reset(spec.seed)
    else:
        load_weights(adapter, spec.initial_adapter)
    adapter.save(scratch, spec.model)
    remove_adapter(loaded.network, adapter)
    _without_dropout(loaded.network)
    return PeftModel.from_pretrained(loaded.network, scratch, is_trainable=True), loaded.tokenizer


def _without_dropout(network: Any) -> None:
    """Switch off the model's own dropout, which `Trainer` would switch on with the adapters'."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _save(trainer: Any, out: Path, scratch: Path) -> None:
    """Write the adapter as `lessonplan.models.lora.Adapter.save` does: two files, no others."""
    from safetensors.torch import load_file

    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    whole = out / TRAINER / "final"
    trainer.save_model(str(whole))
    finite = torch.ones(1, device=trainer.args.device)
    if trainer.args.process_index == 0:
        weights = load_file(whole / "adapter_model.safetensors").values()
        finite[0] = all(bool(tensor.isfinite().all()) for tensor in weights)
    if trainer.accelerator.gather(finite).min() < 1:
        raise TuningError(
            f"The adapter's weights are no longer numbers after step {len(trainer.rates)}, the "
            "last. A lower learning_rate usually helps."
        )
    if trainer.args.process_index == 0:
        shutil.copyfile(scratch / "adapter_config.json", out / "adapter_config.json")
        (whole / "adapter_model.safetensors").replace(out / "adapter_model.safetensors")
        shutil.rmtree(whole)
    trainer.accelerator.wait_for_everyone()


def _last_checkpoint(folder: Path, run: str) -> Path | None:
    """Return the newest whole checkpoint of a run.

    Raises:
        InputError: the checkpoints there are another run's.
    """
    whole = [path for path in folder.glob("checkpoint-*") if (path / MARK).is_file()]
    if not whole:
        return None
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    if json.loads((newest / MARK).read_text(encoding="utf-8"))["run"] != run:
        raise InputError(
            f"{newest} is of a run with other questions, another order, recipe or seed. Give "
            "another folder, or do not resume."
        )
    return newest


def _digest(spec: Spec, questions: Questions) -> str:
    """Return what a run is known by; the machine's side of it may change when it is resumed."""
    digest = hashlib.sha256()
    for name, array in sorted(vars(questions).items()):
        digest.update(f"{name} {len(array)}".encode())
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    recipe = spec.recipe.model_dump(exclude={"device", "threads"})
    model = fingerprint(resolve(spec.model))
    digest.update(json.dumps([model, spec.seed, recipe], sort_keys=True).encode())
    if spec.initial_adapter is not None:
        for file in sorted(spec.initial_adapter.glob("*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder. Give another one, or resume.")


def _processes() -> int:
    """Return how many processes torchrun or ``accelerate launch`` started together with this."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _read_log(file: Path) -> TuningLog:
    log = json.loads(file.read_text(encoding="utf-8"))
    return TuningLog(np.array(log["losses"]), np.array(log["learning_rates"]))


if __name__ == "__main__":
    sys.exit(main())
