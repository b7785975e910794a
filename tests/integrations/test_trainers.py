"""What trainers feed their models, with and without `KeepsOrder`, against slices of the order.

Started by torchrun with a folder, this file is one of the processes of the test of several.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lessonplan.errors import InputError
from lessonplan.integrations import KeepsOrder

trl = pytest.importorskip("trl", reason="needs the extra trl")

KINDS = ("Trainer", "SFTTrainer", "DPOTrainer", "GRPOTrainer")
N, BATCH, EACH = 11, 4, 2  # rows, sequences a forward pass, completions of a prompt
RNG = np.random.default_rng(5)
ORDER = np.stack([RNG.permutation(N), RNG.permutation(N)])  # each epoch in another order


def dataset(kind: str, tokenizer: Any) -> Any:
    """Rows that begin with their number, so that what a model sees says which row it is."""
    from datasets import Dataset

    prompts = [f"{i} is the category" for i in range(N)]
    answers = [" of plague" * (1 + i % 3) for i in range(N)]
    if kind == "Trainer":
        tokens = [tokenizer(p + a)["input_ids"] for p, a in zip(prompts, answers, strict=True)]
        return Dataset.from_dict({"input_ids": tokens})
    columns = {
        "SFTTrainer": {"prompt": prompts, "completion": answers},
        "DPOTrainer": {"prompt": prompts, "chosen": answers, "rejected": answers[::-1]},
        "GRPOTrainer": {"prompt": prompts},
    }
    return Dataset.from_dict(columns[kind])


def make_trainer(
    kind: str, model: Path, out: Path, fed: list[list[int]], *, keeps: bool, **settings: Any
) -> Any:
    """Return a trainer of two epochs that notes the row numbers of every batch."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model)
    processes = int(os.environ.get("WORLD_SIZE", "1"))

    def note(texts: list[str]) -> None:
        fed.append([int(re.match(r"\d+", text)[0]) for text in texts])

    def watch(_: Any, arguments: tuple[Any, ...]) -> None:
        texts = tokenizer.batch_decode(arguments[0], skip_special_tokens=True)
        note(texts[: len(texts) // 2] if kind == "DPOTrainer" else texts)  # the chosen, rejected

    def reward(prompts: list[str], **_: Any) -> list[float]:
        note(prompts[::EACH])
        return [0.0] * len(prompts)

    base = getattr(transformers if kind == "Trainer" else trl, kind)
    kind_of_args = "TrainingArguments" if kind == "Trainer" else kind.replace("Trainer", "Config")
    if kind == "GRPOTrainer":
        settings = {"num_generations": EACH, "max_completion_length": 2, **settings}
    args = getattr(transformers if kind == "Trainer" else trl, kind_of_args)(
        output_dir=str(out),
        use_cpu=True,
        num_train_epochs=settings.pop("num_train_epochs", 2),
        per_device_train_batch_size=BATCH // processes,
        save_strategy="steps" if "save_steps" in settings else "no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        **({"ddp_backend": "gloo"} if processes > 1 else {}),
        **settings,
    )
    more: dict[str, Any] = {"processing_class": tokenizer}
    if kind == "Trainer":
        more["data_collator"] = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    if kind == "GRPOTrainer":
        more["reward_funcs"] = reward
    if keeps:
        base = type("InOrder", (KeepsOrder, base), {})
        more["order"] = ORDER
    trainer = base(model=network, args=args, train_dataset=dataset(kind, tokenizer), **more)
    if kind != "GRPOTrainer":
        network.get_input_embeddings().register_forward_pre_hook(watch)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def expected(kind: str, processes: int = 1, epochs: np.ndarray = ORDER) -> list[list[int]]:
    """Return the rows of every batch over all processes; the last of an epoch may be filled up."""
    size = BATCH // EACH if kind == "GRPOTrainer" else BATCH
    batches = []
    for epoch in epochs.tolist():
        if processes > 1 or kind == "GRPOTrainer":
            missing = -len(epoch) % size
            epoch = epoch + epoch[-missing:] if missing else epoch
        batches += [epoch[i : i + size] for i in range(0, len(epoch), size)]
    return batches


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_kept(tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    fed: list[list[int]] = []
    settings = {"save_steps": 1, "dataloader_num_workers": 2, "keeps": True}
    trainer = make_trainer(kind, tiny_llama, tmp_path, fed, **settings)
    trainer.train()
    assert fed == expected(kind)
    steps = len(fed)
    for begin in (1, steps // 2, steps // 2 + 1):  # within an epoch, at the end of one, the other
        fed.clear()
        resumed = make_trainer(kind, tiny_llama, tmp_path, fed, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{begin}"))
        assert fed == expected(kind)[begin:]


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_fails_where_shuffling_is_left_on(
    tiny_llama: Path, tmp_path: Path, kind: str
) -> None:
    fed: list[list[int]] = []
    make_trainer(kind, tiny_llama, tmp_path, fed, keeps=False).train()
    with pytest.raises(AssertionError):
        assert fed == expected(kind)
    first = [row for batch in fed[: len(fed) // 2] for row in batch]
    assert len(set(first)) == len(first)  # it does show rows once an epoch, in an order of its own
    assert first != sorted(first)


@pytest.mark.parametrize("kind", ["SFTTrainer", "GRPOTrainer"])
def test_steps_of_several_batches(tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    fed: list[list[int]] = []
    settings = {"gradient_accumulation_steps": 2, "save_steps": 1, "keeps": True}
    make_trainer(kind, tiny_llama, tmp_path, fed, **settings).train()
    flat = [row for batch in fed for row in batch]
    if kind == "GRPOTrainer":  # a generation is one step: four prompts
        assert flat == [row for epoch in ORDER.tolist() for row in [*epoch, epoch[-1]]]
    else:
        assert flat == ORDER.ravel().tolist()
    steps = len(list(tmp_path.glob("checkpoint-*")))
    assert steps == {"SFTTrainer": 4, "GRPOTrainer": 6}[kind]


def test_generations_that_are_used_again(tiny_llama: Path, tmp_path: Path) -> None:
    fed: list[list[int]] = []
    make_trainer(
        "GRPOTrainer", tiny_llama, tmp_path, fed, keeps=True, num_iterations=2, num_train_epochs=1
    ).train()
    assert fed == expected("GRPOTrainer", epochs=ORDER[:1])


BROKEN = {
    "packing": (True, "which rows a step holds"),
    "shuffle_dataset": (True, "it moves the rows"),
    "train_sampling_strategy": ("group_by_length", "sorts rows by length"),
    "dataloader_drop_last": (True, "leaves out the last rows"),
    "ignore_data_skip": (True, "begin its epoch anew"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_settings_that_break_it(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    value, why = BROKEN[name]
    more = {"max_length": 64} if name == "packing" else {}
    with pytest.raises(InputError, match=rf"{name}=.* does not keep the order: .*{why}"):
        make_trainer("SFTTrainer", tiny_llama, tmp_path, [], keeps=True, **{name: value}, **more)


@pytest.mark.parametrize(
    ("order", "settings", "message"),
    [
        (ORDER, {"num_train_epochs": 3}, "order has 2 epochs, and num_train_epochs is 3"),
        (np.arange(N + 1), {}, "names rows from 0 to 11, but train_dataset has the 11 from 0"),
        (np.arange(N) / 2, {}, "must be whole numbers"),
    ],
)
def test_orders_that_do_not_fit(
    tiny_llama: Path, tmp_path: Path, monkeypatch, order: Any, settings: Any, message: str
) -> None:
    monkeypatch.setattr(f"{__name__}.ORDER", order)
    with pytest.raises(InputError, match=message):
        make_trainer("Trainer", tiny_llama, tmp_path, [], keeps=True, **settings)


def test_rows_that_have_no_length(tiny_llama: Path, tmp_path: Path, monkeypatch) -> None:
    plain = dataset
    monkeypatch.setattr(f"{__name__}.dataset", lambda *a: plain(*a).to_iterable_dataset())
    with pytest.raises(InputError, match="streamed cannot be put in order"):
        make_trainer("Trainer", tiny_llama, tmp_path, [], keeps=True, max_steps=2)


@pytest.mark.slow
def test_two_processes_keep_the_order(tiny_llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with (
        (tmp_path / "output.txt").open("w") as output,
        subprocess.Popen(
            [*command, __file__, str(tiny_llama), str(tmp_path)],
            env=environment,
            stdout=output,
            stderr=output,
        ) as started,
    ):
        try:
            status = started.wait(timeout=300)
        except subprocess.TimeoutExpired:  # a process waits for the other in vain
            started.terminate()
            raise
    assert status == 0, (tmp_path / "output.txt").read_text()[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for kind in KINDS:
        # A batch over both processes: the rows of the first, then those of the second.
        fed = {
            name: [a + b for a, b in zip(*(rank[kind][name] for rank in ranks), strict=True)]
            for name in ("whole", "resumed", "shuffled")
        }
        whole = expected(kind, processes=2)
        assert fed["whole"] == whole, kind
        assert fed["resumed"] == whole[len(whole) // 2 + 1 :], kind
        with pytest.raises(AssertionError):
            assert fed["shuffled"] == whole


def be_one_process(model: Path, folder: Path) -> None:
    """Train with each trainer and write down what this process fed to the model."""
    found: dict[str, dict[str, list[list[int]]]] = {}
    for kind in KINDS:
        settings = {"save_steps": 1, "dataloader_num_workers": 2}
        fed: dict[str, list[list[int]]] = {"whole": [], "resumed": [], "shuffled": []}
        out = folder / kind
        make_trainer(kind, model, out, fed["whole"], keeps=True, **settings).train()
        begin = len(fed["whole"]) // 2 + 1  # within the second epoch
        resumed = make_trainer(kind, model, out, fed["resumed"], keeps=True, **settings)
        resumed.train(resume_from_checkpoint=str(out / f"checkpoint-{begin}"))
        make_trainer(kind, model, out, fed["shuffled"], keeps=False).train()
        found[kind] = fed
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    be_one_process(*map(Path, sys.argv[1:]))
