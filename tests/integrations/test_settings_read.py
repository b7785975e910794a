"""Settings for other trainers, read by those trainers: each trains on the rows as they stand.

None of them is a dependency, and no two agree on the versions of what they need: where one is
installed, in an environment of its own, its own command trains a small model for two epochs; where
not, its tests are skipped.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lessonplan.integrations import trainer_settings

N = 7  # rows, two a step, so that the last step holds one
QUESTIONS = [f"{i} is the category" for i in range(N)]
ANSWERS = ["of plague" + " of plague" * (5 * i % 4) for i in range(N)]  # of different lengths
PAIRS = list(zip(QUESTIONS, ANSWERS, strict=True))
ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in PAIRS
    ],
    "preference": [{"prompt": q, "chosen": a, "rejected": f"no {a}"} for q, a in PAIRS],
    # Further columns by the names that trainers look for.
    "completion": [
        {"prompt": q, "completion": a, "question": "x", "answer": "y"} for q, a in PAIRS
    ],
    "alpaca": [{"instruction": q, "output": a, "text": "x"} for q, a in PAIRS],
    "alpaca with input": [{"instruction": q, "input": "", "output": a} for q, a in PAIRS],
    "text": [{"text": f"{q} {a}"} for q, a in PAIRS],
}
ORDER = [4, 0, 6, 2, 5, 1, 3]
CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)


def needs(package: str) -> pytest.MarkDecorator:
    """Mark a test that is skipped where a package is not installed."""
    try:
        missing = not version(package)
    except PackageNotFoundError:
        missing = True
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


@pytest.fixture(scope="session")
def chat_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama with a chat template."""
    import transformers

    folder = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(tiny_llama, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def fed(chat_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers of the rows of each step that a trainer makes; none is reported elsewhere."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_llama)
    steps: list[list[int]] = []
    train = transformers.Trainer.training_step

    def watched(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        texts = tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        if "DPO" in type(self).__name__:
            texts = texts[: len(texts) // 2]  # the chosen, then the rejected
        steps.append([int(n) for text in texts for n in re.findall(r"(\d+) is the cat", text)])
        return train(self, model, inputs, *rest, **more)

    monkeypatch.setattr(transformers.Trainer, "training_step", watched)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return steps


def settings(trainer: str, folder: Path, kind: str, order: list[int] = ORDER) -> str:
    """Write rows in order, and return the settings for them."""
    file = folder / "in order.jsonl"
    rows = [ROWS[kind][i] for i in order]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return trainer_settings(trainer, file, {name: [rows[0][name]] for name in rows[0]})


def check(steps: list[list[int]], order: list[int] = ORDER) -> None:
    """Check that two epochs were in order."""
    assert steps == [order[i : i + 2] for i in range(0, N, 2)] * 2


@needs("llamafactory")
@pytest.mark.parametrize("kind", ROWS)
def test_llamafactory(tmp_path: Path, kind: str, chat_llama: Path, fed: list[list[int]]) -> None:
    from llamafactory.train.tuner import run_exp

    entry, _, lines = settings("llamafactory", tmp_path, kind).partition("# and into")
    (tmp_path / "dataset_info.json").write_text(entry.partition("\n")[2], encoding="utf-8")
    found = YAML(typ="safe").load(lines.partition("\n")[2])
    assert found.pop("num_train_epochs") == 1
    run_exp(
        {
            "model_name_or_path": str(chat_llama),
            "template": "empty",
            "finetuning_type": "full",
            "do_train": True,
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 2,
            "num_train_epochs": 2.0,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            **found,
        }
    )
    check(fed)


@needs("ms-swift")
@pytest.mark.parametrize("kind", ROWS)
def test_ms_swift(tmp_path: Path, kind: str, chat_llama: Path, fed: list[list[int]]) -> None:
    from swift import pipelines

    said = settings("ms-swift", tmp_path, kind).replace("\\\n", " ")
    program, command, *arguments = shlex.split(said, comments=True)
    assert program == "swift"
    assert arguments[-2:] == ["--num_train_epochs", "1"]
    mains = {"sft": "sft_main", "pt": "pretrain_main", "rlhf": "rlhf_main"}
    more = {
        "model": chat_llama,
        "model_type": "llama",
        "template": "chatml",
        "tuner_type": "full",
        "torch_dtype": "float32",
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": 0,
    }
    added = [text for name, value in more.items() for text in (f"--{name}", str(value))]
    getattr(pipelines, mains[command])([*arguments[:-2], *added])
    check(fed)
