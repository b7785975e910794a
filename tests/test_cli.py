"""The command line, as its user meets it: statuses, messages, and files that come out."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import lessonplan
from lessonplan import cli


class Said(NamedTuple):
    status: int
    out: str
    err: str


def run(*arguments: object) -> Said:
    """Run the command line in this process. What is no documented error is raised."""
    out, err = io.StringIO(), io.StringIO()
    argv, show, status = sys.argv, warnings.showwarning, 0
    sys.argv = ["lessonplan", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.argv, warnings.showwarning = argv, show
    return Said(status, out.getvalue(), err.getvalue())


def rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{i}",
            "question": f"Under which category is disease number {i} of region {i % 4} classified?",
            "options": [
                f"Group {i % 7} alpha",
                f"Disorder {i % 5} b",
                f"Form {i % 3}",
                f"Other {i}",
            ],
            "answer": "ABCD"[i * 7 % 4],
            "category": f"region {i % 4}",
            "difficulty": i * 37 % 101 / 100,
        }
        for i in range(first, first + n)
    ]


def write(path: Path, questions: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return path


STUDY = """
name: small
models: {model: MODEL, name: tiny}
training: train.jsonl
evaluation: test.jsonl
strategies: [random, blocked, curriculum]
seeds: 3
recipe: {threads: 1, learning_rate: 5e-3, adapter: {rank: 4, layers: 2}}
checkpoints: {at: [0.5], questions: 8}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Folder with questions, good and bad, a model without tokenizer, and a study file."""
    folder = tmp_path_factory.mktemp("cli")
    good = rows(48)
    write(folder / "train.jsonl", good)
    write(folder / "test.jsonl", rows(24, first=100))
    write(folder / "outside.jsonl", [*good[:3], good[3] | {"answer": "E"}])
    write(folder / "one_option.jsonl", [*good[:3], good[3] | {"options": ["all"], "answer": "A"}])
    write(folder / "empty_option.jsonl", [*good[:3], good[3] | {"options": ["a", " ", "c"]}])
    write(folder / "twice.jsonl", [*good[:3], good[3] | {"id": "q1"}])
    write(folder / "nan.jsonl", [*good[:3], good[3] | {"difficulty": float("nan")}])
    bare = ("id", "question", "options", "answer")
    write(folder / "bare.jsonl", [{k: row[k] for k in bare} for row in good])
    long = " ".join(f"word{i}" for i in range(300))
    write(folder / "long.jsonl", [*good[:3], good[3] | {"options": [long, f"{long} b", "c", "d"]}])
    (folder / "half.jsonl").write_text('{"question": "bad \\ud83d half"}\n')
    (folder / "broken.jsonl").write_text('{"id": 1}\n{"id": \n')
    (folder / "empty.jsonl").write_text("")
    bare_model = folder / "no_tokenizer"
    bare_model.mkdir()
    for file in tiny_llama.iterdir():
        if "token" not in file.name:
            (bare_model / file.name).symlink_to(file)
    text = STUDY.replace("MODEL", str(tiny_llama))
    (folder / "study.yaml").write_text(text)
    (folder / "other.yaml").write_text(text.replace("name: small", "name: other"))
    (folder / "unknown.yaml").write_text(text + "seedz: 4\n")
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("dear")
    (folder / "results.csv").write_text(
        "id,arm,seed,correct\n" + "".join(f"q{i},{a},0,{i % 2}\n" for i in range(4) for a in "xy")
    )
    return folder


@pytest.fixture(scope="module")
def study(folder: Path) -> tuple[Path, Said]:
    """A finished study with its report, and what was said."""
    return folder / "out", run("study", folder / "study.yaml", "-o", folder / "out")


# ---- Bad input -----------------------------------------------------------------------------------

SMALL = "--set threads=1"
# What is typed (in the folder; MODEL is a model), and what the message must hold.
BAD = {
    "missing data": ("train trian.jsonl -s random -m MODEL -o NEW", "Did you mean 'train.jsonl'"),
    "missing study file": ("study stud.yaml -o NEW", "stud.yaml cannot be read"),
    "misspelled column": (
        "train train.jsonl -s random -m MODEL -o NEW --column answer=anser",
        "has no column 'anser'. Did you mean 'answer'?",
    ),
    "misspelled column of an order": (
        "order train.jsonl -s blocked --category categry -o NEW.jsonl",
        "has no column 'categry'. Did you mean 'category'?",
    ),
    "misspelled column of the bank": (
        "order icd10cm -s blocked --category categry -o NEW.jsonl",
        "has no column 'categry'. Did you mean 'category'?",
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
        "order nan.jsonl -s curriculum --difficulty difficulty -o NEW.jsonl",
        "1 of 4 questions have no finite difficulty (the first is row 3)",
    ),
    "label that is not there": (
        "train bare.jsonl -s curriculum -m MODEL -o NEW",
        "no finite difficulty",
    ),
    "label that is not given": (
        "order train.jsonl -s blocked -o NEW.jsonl",
        "blocked needs a category",
    ),
    "label that a study lacks": (
        "study study.yaml -o NEW --set training=bare.jsonl",
        "bare, difficulty 'given': no question has a difficulty (column 'difficulty'). Take",
    ),
    "difficulty that is text": (
        "order train.jsonl -s curriculum --difficulty category -o NEW.jsonl",
        "difficulty must be numbers",
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
        "order train.jsonl -s curriculum --difficulty difficulty --bands low,high -o NEW.jsonl",
        "--bands takes a number, or thresholds as 0.3,0.6, not 'low,high'",
    ),
    "bands that fall": (
        "order train.jsonl -s curriculum --difficulty difficulty --bands 0.6,0.3 -o NEW.jsonl",
        "ascending thresholds",
    ),
    "blocks": (
        "order train.jsonl -s interleaved --category category --blocks many -o NEW.jsonl",
        "--blocks takes a whole number or 'band', not 'many'",
    ),
    "blocks that look like a number": (
        "order train.jsonl -s interleaved --category category --blocks ² -o NEW.jsonl",
        "--blocks takes a whole number",
    ),
    "no blocks": (
        "order train.jsonl -s interleaved --category category --blocks 0 -o NEW.jsonl",
        "blocks must be an integer of at least 1",
    ),
    "seed": ("order train.jsonl -s random --seed -1 -o NEW.jsonl", "seed must be an integer"),
    "each": ("order train.jsonl -s random --each day -o NEW.jsonl", "each must be"),
    "split of a file": ("order train.jsonl -s random --split x -o NEW.jsonl", "has no splits"),
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
    "no baseline": ("compare results.csv", "random"),
    "results without columns": ("compare train.jsonl", "arm"),
    "no results": ("compare nothing.csv", "nothing.csv"),
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
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    words = line.replace("MODEL", str(tiny_llama)).replace("NEW", str(tmp_path / "new")).split()
    said = run(*words)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert said.status == 2, said
    assert found in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    if "No such" not in found and "valid integer" not in found:
        assert said.err.startswith("error: ")
        assert len(said.err.splitlines()) == 1
    # Nothing was made that looks like a result.
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


def test_a_typo_costs_a_finished_study_nothing(study: tuple[Path, Said], folder: Path) -> None:
    out, _ = study
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    for line in ("--set training=nothing.jsonl", "--set seedz=1", "--set models=no_tokenizer"):
        assert run("study", folder / "study.yaml", "-o", out, *line.split()).status == 2
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


# ---- Studies -------------------------------------------------------------------------------------


def test_study_status_and_report(study: tuple[Path, Said]) -> None:
    out, said = study
    assert said.status == 0
    assert said.out.splitlines()[-1] == f"report: {out / 'report' / 'index.html'}"
    assert "\x1b" not in said.err
    assert said.err.splitlines()[0] == "10 runs, 0 of them done"
    status = run("status", out)
    assert status.status == 0
    assert "small: 9 of 9 runs done" in status.out
    assert status.out.count("3 of 3") == 3
    (out / "report" / "index.html").unlink()
    again = run("report", out)
    assert again == Said(0, said.out, "")
    assert (out / "report" / "index.html").is_file()


def test_plan_of_a_study_that_was_run(study: tuple[Path, Said]) -> None:
    """What a question took is what all took, a set that is scored on the way counted there too."""
    from lessonplan.study.cost import run_cost

    out, _ = study
    logs = [json.loads(f.read_text()) for f in out.glob("tunings/*/tuning.json")]
    logs = [log for log in logs if log["arm"] != "untuned"]
    cost = run_cost(out)
    assert cost is not None
    scoring = sum(log["scoring_seconds"] for log in logs)
    assert [log["questions"] for log in logs] == [48] * 9
    assert cost.tuning * 9 * 48 == pytest.approx(sum(log["seconds"] for log in logs) - scoring)
    rows = {log["id"]: 0 for log in logs}
    for file in out.glob("tunings/*/evaluations/*.parquet"):
        if file.parents[1].name in rows:
            rows[file.parents[1].name] += pq.read_metadata(file).num_rows
    assert rows == {log["id"]: log["scored"] for log in logs}
    assert cost.scoring * 9 * (24 + 8) == pytest.approx(scoring)
    said = run("plan", out, "--questions", 48)
    assert said.status == 0, said
    assert "A seed takes 3 runs, a run" in said.out


def test_failed_runs_end_in_status_1(folder: Path, tmp_path: Path) -> None:
    wild = ["--set", "recipe.learning_rate=1e30", "--set", "seeds=1", "--set", "strategies=random"]
    said = run("study", folder / "study.yaml", "-o", tmp_path / "s", *wild)
    assert said.status == 1
    assert "1 run failed; starting the study again tries what failed again." in said.out
    assert "failed: tiny, random, seed 0" in said.err
    assert run("report", tmp_path / "s").status == 0
    assert "1 failed" in run("status", tmp_path / "s").out


def test_interrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lessonplan.study.run_study", stop)
    said = run("study", folder / "study.yaml", "-o", tmp_path / "s")
    assert said.status == 130
    assert "stopped; what was finished is kept" in said.err


def test_compare_finds_what_the_study_found(study: tuple[Path, Said], tmp_path: Path) -> None:
    from lessonplan.statistics import analyse, compare
    from lessonplan.study import read_record

    out, _ = study
    plan = json.loads((out / "plan.json").read_text())
    tables = []
    for made in plan["runs"]:
        for e in made["evaluations"]:
            if e["of"] == "test" and e["kind"] == "final" and made["arm"] != "untuned":
                table = pq.read_table(
                    out / "tunings" / made["id"] / "evaluations" / f"{e['id']}.parquet"
                ).select(["id", "correct"])
                n = len(table)
                table = table.append_column("arm", pa.array([made["arm"]] * n))
                tables.append(table.append_column("seed", pa.array([made["seed"]] * n)))
    pa.csv.write_csv(pa.concat_tables(tables), tmp_path / "results.csv")
    (theirs,) = compare(tmp_path / "results.csv").analysis.results
    (ours,) = analyse(read_record(out)).results
    assert {g.arm for g in ours.gains} == {"blocked", "curriculum"}
    found = {g.arm: g.estimate for g in theirs.gains}
    for gain in ours.gains:
        assert found[gain.arm] == gain.estimate
    said = run("compare", tmp_path / "results.csv", "-o", tmp_path / "report")
    assert said.status == 0
    assert "curriculum" in said.out
    assert (tmp_path / "report" / "index.html").is_file()


# ---- Single steps --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(folder: Path, tiny_llama: Path) -> tuple[Path, Said]:
    settings = ("threads=1", "learning_rate=5e-3", "adapter.rank=4", "adapter.layers=2")
    said = run(
        *("train", folder / "train.jsonl", "-m", tiny_llama, "-s", "curriculum", "--seed", 1),
        *("-o", folder / "adapter"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    return folder / "adapter", said


def test_train_and_evaluate_equal_the_study(
    study: tuple[Path, Said],
    adapter: tuple[Path, Said],
    folder: Path,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    from safetensors.numpy import load_file

    saved, said = adapter
    assert said.status == 0
    assert said.out.endswith(f"adapter: {saved}\n")
    out, _ = study
    plan = json.loads((out / "plan.json").read_text())
    (same,) = [r for r in plan["runs"] if (r["arm"], r["seed"]) == ("curriculum", 1)]
    final = next(e["id"] for e in same["evaluations"] if e["kind"] == "final")
    tuning = out / "tunings" / same["id"]
    ours = load_file(saved / "adapter_model.safetensors")
    theirs = load_file(tuning / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        np.testing.assert_allclose(weights, theirs[name], atol=1e-5)

    said = run(
        *("evaluate", folder / "test.jsonl", "-m", tiny_llama, "--adapter", saved),
        *("-o", tmp_path / "p.parquet", "--set", "threads=1"),
    )
    assert said.status == 0
    mine = pq.read_table(tmp_path / "p.parquet")
    expected = pq.read_table(tuning / "evaluations" / f"{final}.parquet")
    for name in ("id", "answer", "chosen", "correct", "tokens", "bytes"):
        assert mine[name].to_pylist() == expected[name].to_pylist()
    for name in ("loglikelihood", "unconditional"):
        np.testing.assert_allclose(
            np.concatenate(mine[name].to_pylist()),
            np.concatenate(expected[name].to_pylist()),
            atol=1e-4,
        )
    accuracy = np.mean(mine["correct"].to_numpy())
    assert said.out.startswith(f"24 questions: accuracy {accuracy:.3f}, weighted F1 ")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_predictions_in_other_formats(
    folder: Path, tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    said = run(
        *("evaluate", folder / "test.jsonl", "-m", tiny_llama, "-o", tmp_path / name),
        *("--form", "letter", "--set", "threads=1"),
    )
    assert said.status == 0
    lines = (tmp_path / name).read_text().splitlines()
    assert len(lines) == 24 + name.endswith("csv")


def test_overwrite(folder: Path, tmp_path: Path) -> None:
    ordered = tmp_path / "ordered.jsonl"
    ordered.touch()  # nothing is lost with an empty file
    command = ("order", folder / "train.jsonl", "-o", ordered)
    assert run(*command, "-s", "random").status == 0
    before = ordered.read_bytes()
    assert run(*command, "-s", "original").status == 2
    assert ordered.read_bytes() == before
    assert run(*command, "-s", "original", "--overwrite").status == 0
    assert ordered.read_bytes() != before


@pytest.mark.parametrize("read", ["DATA", "--adapter", "-m"])
def test_nothing_is_written_into_what_is_read(folder: Path, tmp_path: Path, read: str) -> None:
    """Be it the data, the adapter or the model: a folder's files are read, too."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "config.json").write_text("precious")
    data, *options = [inside] if read == "DATA" else [folder / "train.jsonl", read, inside]
    for way in (inside, tmp_path / "inside" / ".." / "inside"):
        said = run("evaluate", data, *options, "-o", way / "config.json", "--overwrite")
        assert said.status == 2
        assert "which is read by this command" in said.err
    assert (inside / "config.json").read_text() == "precious"


def test_a_report_is_overwritten_and_other_files_are_not(folder: Path, tmp_path: Path) -> None:
    command = ("compare", folder / "results.csv", "-o", tmp_path, "--baseline")
    assert run(*command, "x").status == 0
    page = (tmp_path / "index.html").read_bytes()
    (tmp_path / "notes.txt").write_text("mine")
    assert run(*command, "y").status == 2
    assert (tmp_path / "index.html").read_bytes() == page
    assert run(*command, "y", "--overwrite").status == 0
    assert (tmp_path / "index.html").read_bytes() != page
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_training_in_an_order_of_label_tables(
    adapter: tuple[Path, Said], folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """The same labels, whether they stand in the data or in a table, in any order of its rows."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    labels = [{"id": row["id"], "difficulty": row.pop("difficulty")} for row in rows]
    for name, lines in (("bare.jsonl", rows), ("hard.jsonl", labels[::-1])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = ("threads=1", "learning_rate=5e-3", "adapter.rank=4", "adapter.layers=2")
    train = (
        *("train", tmp_path / "bare.jsonl", "-m", tiny_llama, "-s", "curriculum", "--seed", 1),
        *("-o", tmp_path / "adapter"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    said = run(*train)
    assert said.status == 2
    assert "difficulty" in said.err
    said = run(*train, "--labels", tmp_path / "hard.jsonl")
    assert said.status == 0, said.err
    weights = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / weights).read_bytes() == (adapter[0] / weights).read_bytes()

    (tmp_path / "none.jsonl").write_text('{"id": "0", "note": "no label"}\n')
    train = [tmp_path / "other" if word == tmp_path / "adapter" else word for word in train]
    said = run(*train, "--labels", tmp_path / "none.jsonl")
    assert said.status == 2
    assert "48 of 48 questions have no finite difficulty" in said.err


def test_training_that_fails(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    said = run(
        *("train", folder / "train.jsonl", "-m", tiny_llama, "-s", "random"),
        *("-o", tmp_path / "a", "--set", "learning_rate=1e30", "--set", "threads=1"),
    )
    assert said.status == 1
    assert said.err.startswith("error: The loss became nan at step 2 of 6")
    assert "Traceback" not in said.err
    assert not (tmp_path / "a").exists()


@pytest.fixture(params=["t.jsonl", "t.csv", "t.parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A table that is no question set, with text that must not be retyped."""
    path = tmp_path / request.param
    code = [f"{i:03d}" for i in range(12)]
    columns = {
        "code": code,
        "text": [f'say "{c}", {i}' for i, c in enumerate(code)],
        "kind": [1 + i % 3 for i in range(12)],
        "hard": [(i * 7 % 12) / 12 for i in range(12)],
    }
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns | {"list": [[i] for i in range(12)]}), path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(pa.table(columns), path)
    else:
        write(path, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values())])  # noqa: B905
    return path


ORDERS: dict[str, dict[str, Any]] = {
    "-s random": {},
    "-s blocked --category kind --category-order 3,1,2": {"category_order": [3, 1, 2]},
    "-s interleaved_curriculum --category kind --difficulty hard --blocks band --bands 0.3,0.6 "
    "--hardest-first": {"blocks": "band", "bands": [0.3, 0.6], "hardest_first": True},
    "-s curriculum --difficulty hard --bands 3 --repeat 2 --epochs 2 --each anew": {
        "bands": 3,
        "repeat": 2,
        "epochs": 2,
        "each": "anew",
    },
}


@pytest.mark.parametrize(("options", "settings"), ORDERS.items(), ids=ORDERS)
def test_order_keeps_all_columns_and_bytes(
    table: Path, options: str, settings: dict[str, Any]
) -> None:
    labels: dict[str, Any] = {}
    if "--category " in options:
        labels["category"] = [1 + i % 3 for i in range(12)]
    if "--difficulty " in options:
        labels["difficulty"] = [(i * 7 % 12) / 12 for i in range(12)]
    strategy = options.split()[1]
    order = lessonplan.order(strategy, 12, seed=3, **labels, **settings)
    out = table.with_name(f"out{table.suffix}")
    said = run("order", table, *options.split(), "--seed", 3, "-o", out)
    assert said == Said(0, f"{len(order)} rows in {strategy} order: {out}\n", "")
    if table.suffix == ".parquet":
        assert pq.read_table(out).equals(pq.read_table(table).take(order))
        return
    lines = table.read_bytes().splitlines(keepends=True)
    header = [lines.pop(0)] if table.suffix == ".csv" else []
    assert out.read_bytes() == b"".join(header + [lines[i] for i in order])


def test_order_of_the_bank(tmp_path: Path) -> None:
    bank = lessonplan.load_questions("icd10cm", split="test")
    out = tmp_path / "o.jsonl"
    said = run("order", "icd10cm", "--split", "test", "-s", "interleaved_curriculum", "-o", out)
    assert said.status == 0
    expected = lessonplan.order(
        "interleaved_curriculum", category=bank["category"][:], difficulty=bank["difficulty"][:]
    )
    shown = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in shown] == [bank["id"][int(i)] for i in expected]
    assert list(shown[0]) == bank.column_names
    # A setting needs the difficulty where the strategy does not.
    said = run(
        *("order", "icd10cm", "--split", "test", "-s", "blocked"),
        *("--category-order", "difficulty", "-o", out, "--overwrite"),
    )
    assert said.status == 0


# ---- Lists and help ------------------------------------------------------------------------------


# ---- Labels --------------------------------------------------------------------------------------


def test_label_then_order(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """What `label` writes, `order` takes: by id, whatever the order of the rows."""
    out = tmp_path / "labels.parquet"
    said = run("label", "difficulty", folder / "train.jsonl", "-m", tiny_llama, "-o", out,
               "--set", "threads=1")  # fmt: skip
    assert said.status == 0, said
    assert "chooses the right option of" in said.out
    assert "“this label” and “of the data”" in said.out
    assert "bits of the right answer's position" in said.out
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [f"q{i}" for i in range(48)]
    difficulty = dict(zip(table["id"].to_pylist(), table["difficulty"].to_pylist(), strict=True))
    turned = write(tmp_path / "turned.jsonl", rows(48)[::-1])
    ordered = tmp_path / "ordered.jsonl"
    said = run("order", turned, "-s", "curriculum", "--labels", out, "-o", ordered)
    assert said.status == 0, said
    shown = [json.loads(line)["id"] for line in ordered.read_text().splitlines()]
    assert shown == sorted(shown, key=lambda i: difficulty[i])


def test_labels_of_rows_without_ids(tmp_path: Path) -> None:
    bare = [{k: v for k, v in row.items() if k != "id"} for row in rows(12)]
    data, out = write(tmp_path / "bare.jsonl", bare), tmp_path / "length.csv"
    assert run("label", "difficulty", data, "--measure", "length", "-o", out).status == 0
    ordered = tmp_path / "ordered.jsonl"
    said = run("order", data, "-s", "curriculum", "--labels", out, "-o", ordered)
    assert said.status == 0, said
    shown = [json.loads(line) for line in ordered.read_text().splitlines()]
    sizes = [len(r["question"]) + sum(map(len, r["options"])) for r in shown]
    assert sizes == sorted(sizes)


def test_a_label_at_chance_says_so_and_a_study_refuses_it(
    folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.csv"
    said = run("label", "difficulty", folder / "train.jsonl", "-m", tiny_llama, "-o", out,
               "--set", "threads=1")  # fmt: skip
    assert "no better than guessing" in said.out
    assert "a study refuses them" in said.out
    said = run("study", folder / "study.yaml", "-o", tmp_path / "new",
               "--set", f"labels.difficulty.mine.table={out}")  # fmt: skip
    assert said.status == 2
    assert "no better than guessing" in said.err
    assert "allow_uninformative" in said.err


BAD_LABELS = {
    "nothing asked": ("difficulty train.jsonl -o NEW.csv", "found none of them"),
    "two things asked": (
        "difficulty train.jsonl -m MODEL --answers results.csv -o NEW.csv",
        "found answers and measure",
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
    indices = [{k: v for k, v in row.items() if k not in ("options", "answer")} for row in rows(4)]
    indices = [
        row | {"a": "one", "b": "two" + "o" * i, "c": "three", "key": 1 + i % 2}
        for i, row in enumerate(indices)
    ]
    data, out = write(tmp_path / "indices.jsonl", indices), tmp_path / "length.csv"
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


def test_a_label_table_and_a_column_together(folder: Path, tmp_path: Path) -> None:
    """The category is the data's own, the difficulty comes from the table."""
    table, ordered = tmp_path / "length.csv", tmp_path / "ordered.jsonl"
    run("label", "difficulty", folder / "train.jsonl", "--measure", "length", "-o", table)
    said = run("order", folder / "train.jsonl", "-s", "blocked_curriculum", "--labels", table,
               "--category", "category", "-o", ordered)  # fmt: skip
    assert said.status == 0, said
    shown = [json.loads(line) for line in ordered.read_text().splitlines()]
    kinds = [row["category"] for row in shown]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) == 3
    for kind in set(kinds):
        sizes = [
            len(r["question"]) + sum(map(len, r["options"])) for r in shown if r["category"] == kind
        ]
        assert sizes == sorted(sizes)


def test_ids_under_another_name_are_asked_for(tmp_path: Path) -> None:
    """Numbers that are ids could pass for row numbers."""
    named = [
        {k: v for k, v in row.items() if k != "id"} | {"number": 11 - i}
        for i, row in enumerate(rows(12))
    ]
    data, table = write(tmp_path / "named.jsonl", named), tmp_path / "length.csv"
    said = run("label", "difficulty", data, "--measure", "length", "--column", "id=number",
               "-o", table)  # fmt: skip
    assert said.status == 0, said
    ordered = tmp_path / "ordered.jsonl"
    said = run("order", data, "-s", "curriculum", "--labels", table, "-o", ordered)
    assert said.status == 2
    assert "--id number" in said.err
    said = run("order", data, "-s", "curriculum", "--labels", table, "--id", "number",
               "-o", ordered)  # fmt: skip
    assert said.status == 0, said
    shown = [json.loads(line) for line in ordered.read_text().splitlines()]
    sizes = [len(r["question"]) + sum(map(len, r["options"])) for r in shown]
    assert sizes == sorted(sizes)


def test_lists() -> None:
    for command, names in (
        ("strategies", list(lessonplan.STRATEGIES)),
        ("models", ["smollm2-135m", "gemma3-270m", "tinyllama-1.1b", "llama2-7b", "llama2-13b"]),
        ("datasets", ["icd10cm", "hpo", "medmcqa", "medqa", "lek"]),
    ):
        said = run(command)
        assert said.status == 0
        listed = [line.split()[0] for line in said.out.splitlines()]
        assert set(names) <= set(listed)


def test_help_of_every_command() -> None:
    said = run("--help")
    assert said.status == 0
    commands = ["study", "plan", "status", "report", "compare", "grid", "order", "label", "train"]
    commands += ["evaluate", "strategies", "models", "datasets"]
    listed = said.out[said.out.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed if line[2:3].strip()] == commands
    for command in commands:
        help_text = run(command, "--help")
        assert help_text.status == 0
        assert help_text.out


def test_a_bank_that_is_taken_as_a_whole_is_said_to_be(tmp_path: Path) -> None:
    out = tmp_path / "ordered.jsonl"
    whole = run("order", "icd10cm", "-s", "blocked", "-o", out)
    assert "taken as a whole; --split train or --split test" in whole.err
    part = run("order", "icd10cm", "--split", "train", "-s", "blocked", "-o", out, "--overwrite")
    assert (part.status, part.err) == (0, "")


def test_help_imports_nothing_slow() -> None:
    program = """
import sys
import lessonplan
from lessonplan.cli import main
sys.argv = ["lessonplan", "--help"]
try:
    main()
finally:
    slow = {"torch", "transformers", "datasets", "pandas", "scipy", "matplotlib", "pyarrow"}
    print("SLOW", sorted(slow & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "SLOW []"
