"""What is wrong with a command that reads good files: status 2 and one message that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Said, run
from tests.questions import question_rows, write_rows

SMALL = "--set threads=1"
# What is typed (in the folder; MODEL is a model), and what the message must hold.
BAD = {
    "missing data": ("train trian.jsonl -s random -m MODEL -o NEW", "Did you mean 'train.jsonl'"),
    "missing study file": (
        "study stud.yaml -o NEW",
        "There is no study file stud.yaml. Did you mean 'study.yaml'?",
    ),
    "misspelled column": (
        "train train.jsonl -s random -m MODEL -o NEW --column answer=anser",
        "has no column 'anser'. Did you mean 'answer'?",
    ),
    "misspelled column of an order": (
        "order train.jsonl -s blocked --column category=categry -o NEW.jsonl",
        "has no column 'categry'. Did you mean 'category'?",
    ),
    "a column of the bank": (
        "order icd10cm -s blocked --column category=topic -o NEW.jsonl",
        "icd10cm is built in, so its columns are known: leave out columns, format and answer_base",
    ),
    "answer outside": ("train outside.jsonl -s random -m MODEL -o NEW", "line 4"),
    "one option": ("train one_option.jsonl -s random -m MODEL -o NEW", "fewer than two options"),
    "empty option": ("train empty_option.jsonl -s random -m MODEL -o NEW", "empty option"),
    "duplicate id": ("train twice.jsonl -s random -m MODEL -o NEW", "duplicate id: 1 (line 4)"),
    "broken line": ("evaluate broken.jsonl -m MODEL -o NEW.csv", "line 2: not valid JSON"),
    "no rows": ("evaluate empty.jsonl -m MODEL -o NEW.csv", "empty.jsonl"),
    "no rows to put in order": (
        "order empty.jsonl -s random -o NEW.jsonl",
        "empty.jsonl holds no rows to put in order",
    ),
    "NaN difficulty": ("train nan.jsonl -s curriculum -m MODEL -o NEW", "no finite difficulty"),
    "NaN difficulty of an order": (
        "order nan.jsonl -s curriculum -o NEW.jsonl",
        "nan.jsonl: 1 of 4 questions have no finite difficulty (the first is line 4)",
    ),
    "label that is not there": (
        "train bare.jsonl -s curriculum -m MODEL -o NEW",
        "bare.jsonl: 48 of 48 questions have no finite difficulty (the first is question 'q0')",
    ),
    "label of an order that is not there": (
        "order bare.jsonl -s blocked -o NEW.jsonl",
        "blocked needs a category for every question: give category=, or on the command line",
    ),
    "labels that an order does not use": (
        "order train.jsonl -s random --labels train.jsonl -o NEW.jsonl",
        "--labels has no effect: random uses no label",
    ),
    "labels of another kind": (
        "order train.jsonl -s curriculum --labels results.csv -o NEW.jsonl",
        "results.csv has no column 'difficulty', of which curriculum makes its order",
    ),
    "labels of another kind to train": (
        "train train.jsonl -s curriculum -m MODEL --labels results.csv -o NEW",
        "results.csv has no column 'difficulty', of which curriculum makes its order",
    ),
    "a label in two places": (
        "order train.jsonl -s curriculum --labels train.jsonl --labels test.jsonl -o NEW.jsonl",
        "train.jsonl and test.jsonl both give a difficulty. Leave out one of them",
    ),
    "a label in two places to train": (
        "train train.jsonl -s blocked -m MODEL --labels train.jsonl --column category=id -o NEW",
        "--column category=id and train.jsonl both give a category. Leave out one of them",
    ),
    "a column that no order reads": (
        "order train.jsonl -s blocked --column answer=category -o NEW.jsonl",
        "--column answer=... has no effect: of a file an order reads category and difficulty",
    ),
    "an id without labels": (
        "order train.jsonl -s blocked --column id=question -o NEW.jsonl",
        "--column id=... has no effect without --labels",
    ),
    "bands of a shuffle": (
        "order train.jsonl -s random --bands 2 -o NEW.jsonl",
        "bands has no effect on random, which does not sort questions by difficulty. Leave it out",
    ),
    "passes of one": (
        "order train.jsonl -s random --each anew -o NEW.jsonl",
        "each='anew' has no effect on a single pass. Leave it out, or give epochs of 2 or more",
    ),
    "label that a study lacks": (
        "study study.yaml -o NEW --set training=bare.jsonl",
        "bare, difficulty 'given': no question has a difficulty (column 'difficulty'). Take",
    ),
    "difficulty that is text": (
        "order train.jsonl -s curriculum --column difficulty=category -o NEW.jsonl",
        "train.jsonl, line 1, column 'category': expected a difficulty as a number; found 'reg",
    ),
    "unknown key": ("study unknown.yaml -o NEW", "seedz: this key is unknown. Did you mean"),
    "model without tokenizer": (
        "study study.yaml -o NEW --set models=no_tokenizer",
        "no_tokenizer has no tokenizer",
    ),
    "no such model": ("evaluate test.jsonl -m smollm2 -o NEW.csv", "Did you mean 'smollm2-135m'"),
    "options too long": (
        "study study.yaml -o NEW --set training=long.jsonl --set allow_overlap=true",
        "long, question q3: prompt, options and answer alone take",
    ),
    "options too long to evaluate": (
        f"evaluate long.jsonl -m MODEL -o NEW.csv {SMALL}",
        "question q3: prompt, options and answer alone take",
    ),
    "more tokens than the model reads": (
        "study study.yaml -o NEW --set recipe.max_tokens=1000",
        "max_tokens is 1000, but tiny reads at most 512",
    ),
    "another study": ("study other.yaml -o out", "holds another study ('small', not 'other')"),
    "other files": ("study study.yaml -o full", "not empty and holds no study"),
    "a file": ("study study.yaml -o train.jsonl", "train.jsonl cannot be written to"),
    "the study file's own folder": (
        "study own/study.yaml -o own",
        "own/study.yaml would be written over: a study's folder keeps its settings under this "
        "name. Give another folder with -o, or a copy",
    ),
    "a folder with another's study file": ("study study.yaml -o own", "own is not empty and holds"),
    "adapter folder in use": (
        "train train.jsonl -s random -m MODEL -o full",
        "full is a folder that is not empty. Give another name with -o.",
    ),
    "an input for the output": (
        "order train.jsonl -s random -o train.jsonl",
        "train.jsonl is read by this command, so it cannot be written, too",
    ),
    "an input for the output, insisted on": (
        "order train.jsonl -s random -o full/../train.jsonl --overwrite",
        "is read by this command",
    ),
    "a file that is there": (
        "order train.jsonl -s random -o test.jsonl",
        "test.jsonl exists. Give another name with -o, or say --overwrite to replace it",
    ),
    "predictions over a file that is there": (
        "evaluate train.jsonl -m MODEL -o results.csv",
        "results.csv exists",
    ),
    "a label table that is there": (
        "label difficulty train.jsonl --measure length -o results.csv",
        "results.csv exists",
    ),
    "labels over the answers": (
        "label difficulty train.jsonl --answers results.csv --key id -o results.csv --overwrite",
        "results.csv is read by this command",
    ),
    "clusters over a file that is there": (
        "label category train.jsonl -o results.csv",
        "results.csv exists",
    ),
    "a report among other files": (
        "compare results.csv --baseline x -o full",
        "or say --overwrite to replace the report in it",
    ),
    "a report beside what it is made from": (
        "compare results.csv --baseline x -o . --overwrite",
        ". shares a folder with results.csv, which is read by this command",
    ),
    "tables beside what they are made from": (
        "grid results.csv -o . --overwrite",
        ". shares a folder with results.csv, which is read by this command",
    ),
    "a file for a folder": (
        "compare results.csv --baseline x -o train.jsonl",
        "train.jsonl is a file; the name of a folder is needed",
    ),
    "a folder for a table": ("order train.jsonl -s random -o full", "must end in one of"),
    "a label that an order does not use": (
        "order train.jsonl -s random --column category=topic -o NEW.jsonl",
        "--column category=... has no effect: this order uses no category",
    ),
    "a column twice": (
        "order train.jsonl -s blocked --column category=a --column category=b -o NEW.jsonl",
        "--column category=... stands there twice",
    ),
    "nothing to draw anew": (
        "order train.jsonl -s original --epochs 2 --each anew -o NEW.jsonl",
        "--each anew has no effect: original has nothing to draw",
    ),
    "a split of a file on the hub": (
        "evaluate hf://datasets/o/n/all.parquet --split test -m MODEL -o NEW.csv",
        "hf://datasets/o/n/all.parquet is one file and has no splits",
    ),
    "a GPU where there is none": (
        "evaluate test.jsonl -m MODEL -o NEW.csv --set device=cuda",
        "device: cuda needs a GPU",
    ),
    "no device": (
        "evaluate test.jsonl -m MODEL -o NEW.csv --set device=cudda",
        "device: torch knows no 'cudda'",
    ),
    "no adapter": (
        f"evaluate test.jsonl -m MODEL --adapter full -o NEW.csv {SMALL}",
        "full is no adapter",
    ),
    "unknown strategy": (
        "order train.jsonl -s interleved -o NEW.jsonl",
        "Did you mean 'interleaved'?",
    ),
    "unknown strategy to train": (
        "train train.jsonl -s interleved -m MODEL -o NEW",
        "Did you mean 'interleaved'?",
    ),
    "bands": (
        "order train.jsonl -s curriculum --bands low,high -o NEW.jsonl",
        "--bands takes a number, or thresholds as 0.3,0.6, not 'low,high'",
    ),
    "bands that fall": (
        "order train.jsonl -s curriculum --bands 0.6,0.3 -o NEW.jsonl",
        "ascending thresholds",
    ),
    "blocks": (
        "order train.jsonl -s interleaved --blocks many -o NEW.jsonl",
        "--blocks takes a whole number or 'band', not 'many'",
    ),
    "blocks that look like a number": (
        "order train.jsonl -s interleaved --blocks ² -o NEW.jsonl",
        "--blocks takes a whole number",
    ),
    "no blocks": (
        "order train.jsonl -s interleaved --blocks 0 -o NEW.jsonl",
        "blocks must be an integer of at least 1",
    ),
    "seed": ("order train.jsonl -s random --seed -1 -o NEW.jsonl", "seed must be an integer"),
    "each": ("order train.jsonl -s random --each day -o NEW.jsonl", "each must be"),
    "split of a file": ("order train.jsonl -s random --split x -o NEW.jsonl", "has no splits"),
    "bad rows of a file": (
        "order train.jsonl -s random --bad-rows drop -o NEW.jsonl",
        "train.jsonl is put in order as it stands, answers and all rows alike; leave out --bad-",
    ),
    "setting without value": (
        "train train.jsonl -s random -m MODEL -o NEW --set learning_rate",
        "--set takes key=value",
    ),
    "unknown setting": (
        "train train.jsonl -s random -m MODEL -o NEW --set learning_rat=1",
        "Did you mean 'learning_rate'?",
    ),
    "setting out of limits": (
        "train train.jsonl -s random -m MODEL -o NEW --set adapter.rank=0",
        "adapter.rank",
    ),
    "unknown setting of a study": (
        "study study.yaml -o NEW --set recipe.threds=1",
        "recipe.threds: this key is unknown. Did you mean 'threads'?",
    ),
    "column without equals": (
        "evaluate test.jsonl -m MODEL -o NEW.csv --column answer",
        "--column takes ours=theirs",
    ),
    "unknown column of ours": (
        "evaluate test.jsonl -m MODEL -o NEW.csv --column anser=answer",
        "Did you mean 'answer'?",
    ),
    "scoring": (
        "evaluate test.jsonl -m MODEL -o NEW.csv --form guess",
        "'letter' (found 'guess')",
    ),
    "bad rows": ("evaluate test.jsonl -m MODEL -o NEW.csv --bad-rows keep", "bad_rows is 'error'"),
    "unknown format to write": ("evaluate test.jsonl -m MODEL -o NEW.txt", "must end in one of"),
    "place that cannot be written": (
        "order train.jsonl -s random -o train.jsonl/NEW.jsonl",
        "train.jsonl",
    ),
    "a score of letters": (
        "evaluate test.jsonl -m MODEL -o NEW.csv --form letter --score per_byte",
        "score: per_byte has no effect on form: letter, which is always compared by sum",
    ),
    "a score of the answer alone": (
        "train train.jsonl -s random -m MODEL -o NEW --score sum",
        "--score sum has no effect on a training whose loss is of the answer alone. Leave it out",
    ),
    "a setting of tuning to evaluate": (
        "evaluate test.jsonl -m MODEL -o NEW.csv --set adapter.rank=4",
        "--set adapter=... has no effect here. Leave it out; what can be set is max_tokens, dtype",
    ),
    "processes of one": (
        "train train.jsonl -s random -m MODEL -o NEW --processes 2",
        "processes go with trainer: trl (--set trainer=trl)",
    ),
    "nothing to overwrite": (
        "compare results.csv --baseline x --overwrite",
        "--overwrite has no effect without -o",
    ),
    "no tables to overwrite": ("grid results.csv --overwrite", "no effect without -o"),
    "seeds that are asked for": (
        "plan study.yaml --gain 2 --seeds 5",
        "--seeds has no effect with --gain, which asks how many seeds it takes",
    ),
    "no baseline": ("compare results.csv", "random"),
    "results without columns": ("compare train.jsonl", "arm"),
    "no results": ("compare result.csv", "no file result.csv. Did you mean 'results.csv'?"),
    "results that are no text": (
        "compare binary.csv",
        "binary.csv, line 2: byte 0xaa is not UTF-8",
    ),
    "a folder of results": ("compare full", "full is a folder; a file"),
    "accuracies of nothing": (
        "grid results.csv --baseline x",
        "results.csv: no column 'strategy'",
    ),
    "status of no study": ("status full", "full is no study folder"),
    "report of no study": ("report full", "full is no study folder"),
    "no folder at all": ("report NEW", "is no study folder"),
    "no such command": ("studdy x", "No such command"),
    "no such option": ("order train.jsonl -s random -o NEW.jsonl --sed 1", "No such option"),
    "option of another kind": (
        "order train.jsonl -s random -o NEW.jsonl --seed one",
        "should be a valid integer",
    ),
}


def contents(folder: Path) -> dict[Path, int]:
    """Return all files in a folder, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("line", "found"), BAD.values(), ids=BAD)
def test_bad_input(
    folder: Path,
    study: tuple[Path, Said],
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    found: str,
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    words = line.replace("MODEL", str(tiny_llama)).replace("NEW", str(tmp_path / "new")).split()
    said = run(*words)
    assert contents(folder) == before
    assert said.status == 2, said
    assert found in said.err
    assert "Traceback" not in said.err
    assert all(line.isprintable() for line in said.err.splitlines())
    assert said.out == ""
    if "No such" not in found and "valid integer" not in found:
        assert said.err.startswith("error: ")
        assert len(said.err.splitlines()) == 1
    # Nothing was made that looks like a result.
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


def test_a_typo_costs_a_finished_study_nothing(study: tuple[Path, Said], folder: Path) -> None:
    out, _ = study
    before = contents(out)
    for line in ("--set training=nothing.jsonl", "--set seedz=1", "--set models=no_tokenizer"):
        assert run("study", folder / "study.yaml", "-o", out, *line.split()).status == 2
    assert contents(out) == before


BAD_LABELS = {
    "nothing asked": ("difficulty train.jsonl -o NEW.csv", "found none of them"),
    "two things asked": (
        "difficulty train.jsonl -m MODEL --answers results.csv -o NEW.csv",
        "--share-right; found --model and --answers",
    ),
    "unknown measure": ("difficulty train.jsonl --measure los -o NEW.csv", "measure: Input should"),
    "unknown model": ("difficulty train.jsonl -m smollm -o NEW.csv", "Did you mean 'smollm2-135m'"),
    "no server": (
        "difficulty train.jsonl -m m@http://127.0.0.1:9/v1 --attempts 1 -o NEW.csv",
        "http://127.0.0.1:9/v1",
    ),
    "cloze from a server": (
        "difficulty train.jsonl -m m@http://127.0.0.1:9/v1 --form cloze -o NEW.csv",
        "asked for letters alone",
    ),
    "dynamics from a server": (
        "difficulty train.jsonl -m m@http://127.0.0.1:9/v1 --measure confidence -o NEW.csv",
        "it must run here",
    ),
    "unknown ending": ("difficulty train.jsonl --measure length -o NEW.txt", "must end in one of"),
    "too few to cluster": ("category train.jsonl -o NEW.csv", "48"),
    "unknown embedder": ("category train.jsonl --embedder minilmm -o NEW.csv", "'minilm'"),
    "settings of another source": (
        "difficulty train.jsonl --measure length --method 2pl -o NEW.csv",
        "method: 2pl goes with answers",
    ),
    "a server's settings without one": (
        "difficulty train.jsonl -m MODEL --top 5 --api chat -o NEW.csv",
        "api and top (of endpoint) have no effect: no model is behind a server",
    ),
    "a setting of tuning": (
        "difficulty train.jsonl -m MODEL --set epochs=2 -o NEW.csv",
        "--set epochs=... has no effect here",
    ),
    "a setting of models": (
        "difficulty train.jsonl --measure length --set threads=1 -o NEW.csv",
        "--set threads=... has no effect here. Leave it out; what can be set is nothing",
    ),
    "a score without models": (
        "difficulty train.jsonl --measure length --score sum -o NEW.csv",
        "--score sum has no effect without a --model",
    ),
    "one model twice": ("difficulty train.jsonl -m MODEL -m MODEL -o NEW.csv", "stands twice"),
    "no threads": ("category train.jsonl --threads 0 -o NEW.csv", "threads"),
    "half a character": ("difficulty half.jsonl --measure length -o NEW.csv", "half a character"),
    "wrong noise": ("category train.jsonl --noise drop -o NEW.csv", "cluster.noise"),
}


@pytest.mark.parametrize(("line", "found"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels(
    folder: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    found: str,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LESSONPLAN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    out.mkdir()
    words = line.replace("MODEL", str(tiny_llama)).replace("NEW", str(out / "new")).split()
    said = run("label", *words)
    assert said.status == 2, said
    assert found in said.err
    assert said.err.count("\n") <= 3  # what was begun, and the error
    assert not list(out.iterdir())


def test_where_answers_begin(folder: Path, tmp_path: Path) -> None:
    """Indices of which none is 0 or the number of options leave it open."""
    indices = [
        {k: v for k, v in row.items() if k not in ("options", "answer")} for row in question_rows(4)
    ]
    indices = [
        row | {"a": "one", "b": "two" + "o" * i, "c": "three", "key": 1 + i % 2}
        for i, row in enumerate(indices)
    ]
    data, out = write_rows(tmp_path / "indices.jsonl", indices), tmp_path / "length.csv"
    command = ("label", "difficulty", data, "--measure", "length", "-o", out,
               "--column", "options=a,b,c", "--column", "answer=key")  # fmt: skip
    said = run(*command)
    assert said.status == 2
    assert "Set answer_base to 0 or 1" in said.err
    said = run(*command, "--answer-base", 2)
    assert said.status == 2
    assert "answer_base is 0 or 1, not 2" in said.err
    assert run(*command, "--answer-base", 1).status == 0
    assert out.is_file()
