"""What a study survives: kills, a full disk, damaged files, a changed study file, failing runs."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lessonplan import cli
from lessonplan.errors import NO_ROOM, InputError
from lessonplan.report import write_report
from lessonplan.statistics import analyse, verdict
from lessonplan.study import Study, read_record, run_study
from lessonplan.study import files as files_module
from lessonplan.study import plan as plan_module
from lessonplan.study import work as work_module
from lessonplan.study.plan import Plan, make_plan
from lessonplan.study.status import status_table
from lessonplan.training import tune as tune_module
from tests.study.ears import Ears

Make = Callable[..., Study]
Contents = Callable[[Path], dict[str, str]]
Finished = tuple[Path, Plan]
REPOSITORY = Path(__file__).parents[2]


def at(moment: str, act: Callable[[], None]) -> Callable[[str], None]:
    """Return a disturbance that acts once, when the moment comes."""
    acted = False

    def disturb(text: str) -> None:
        nonlocal acted
        if text == moment and not acted:
            acted = True
            act()

    return disturb


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return when each file under tunings/ was written, and that it is the same file."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.stat().st_ino)
        for file in (folder / "tunings").rglob("*")
        if file.is_file()
    }


def runs_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "plan.json").read_text())["runs"])


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str]:
    """Run the command line; return its status and what it said on the error stream."""
    monkeypatch.setattr(sys, "argv", ["lessonplan", *map(str, words)])
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    return status, capsys.readouterr().err


# ---- Kills ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("kills", "workers"),
    [(5, ["1"]), pytest.param(24, ["1", "3"], marks=pytest.mark.long)],
    ids=["short", "long"],
)
def test_a_study_that_is_killed_again_and_again(kills: int, workers: list[str]) -> None:
    words = ["--kills", str(kills), "--workers", *workers]
    done = subprocess.run(
        [sys.executable, "-m", "tests.study.campaign", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{kills} kills")


# ---- Disks ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, spare: int) -> None:
    """Write to a disk until so many bytes are free."""
    file = disk / "filler"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 10))
    os.truncate(file, file.stat().st_size - spare)


def limit(size: int) -> None:
    """Let neither this process nor its workers write a file of more bytes."""
    for process in [os.getpid(), *(p.pid for p in multiprocessing.active_children() if p.pid)]:
        _, most = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, most))


@pytest.fixture
def unlimited_again() -> Iterator[None]:
    yield
    limit(resource.RLIM_INFINITY)


@pytest.mark.parametrize(
    ("moment", "workers", "spare"),
    [("begin", 1, 1 << 15), ("run", 1, 0), ("run", 2, 0)],
    ids=["hidden states", "second run", "second run, two workers"],
)
def test_a_full_disk(
    make: Make,
    finished: Finished,
    contents: Contents,
    small_disk: Path,
    moment: str,
    workers: int,
    spare: int,
) -> None:
    folder = small_disk / "s"
    with pytest.raises(OSError, match="No space left on device") as caught:
        run_study(make(workers=workers), folder, Ears(at(moment, lambda: fill(small_disk, spare))))
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).startswith(str(folder))
    if moment == "begin":
        assert "hidden" in str(caught.value.filename)
    done, whole = contents(folder), contents(finished[0])
    assert done.items() < whole.items()
    assert bool(done) == (moment == "run")
    (small_disk / "filler").unlink()
    before = state(folder)
    again = Ears()
    run_study(make(workers=workers), folder, again)
    assert again.done == 7 - again.began[1]
    assert contents(folder) == whole
    assert state(folder).items() >= before.items()
    assert not list(folder.rglob(".writing-*"))


@pytest.mark.usefixtures("unlimited_again")
@pytest.mark.parametrize("moment", ["begin", "run"])
def test_a_file_that_may_not_grow(
    make: Make, finished: Finished, contents: Contents, tmp_path: Path, moment: str
) -> None:
    """The same without a disk of one's own: the system refuses what a full one would refuse."""
    folder = tmp_path / "s"
    with pytest.raises(OSError, match="File too large") as caught:
        run_study(make(), folder, Ears(at(moment, lambda: limit(1000))))
    limit(resource.RLIM_INFINITY)
    assert caught.value.errno in NO_ROOM
    assert str(caught.value.filename).startswith(str(folder))
    assert not list(folder.rglob(".writing-*"))
    assert contents(folder).items() < contents(finished[0]).items()
    run_study(make(), folder)
    assert contents(folder) == contents(finished[0])


@pytest.mark.parametrize("name", ["order.parquet", "adapter", "tuning.json"])
def test_whatever_file_the_disk_is_full_at(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from safetensors import torch as safetensors_torch

    def refuse(*_: Any, **__: Any) -> None:
        # As each library says it: Python and Arrow without the file, safetensors in a text.
        if name == "adapter":
            raise files_module.SafetensorError("I/O error: No space left (os error 28)")
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    if name == "adapter":
        monkeypatch.setattr(safetensors_torch, "save_file", refuse)
    else:
        sound = files_module.new_file

        def new_file(path: Path) -> Any:
            if path.name == name:
                with files_module.naming(path):
                    refuse()
            return sound(path)

        monkeypatch.setattr(files_module, "new_file", new_file)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        run_study(make(seeds=1), tmp_path / "s")
    assert "tunings" in str(caught.value.filename)
    assert not list((tmp_path / "s").rglob(".writing-*"))


def test_what_the_command_line_says_of_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make: Make, tmp_path: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/out/order.parquet")

    monkeypatch.setattr("lessonplan.study.run_study", full)
    file = tmp_path / "study.yaml"
    file.write_text("training: t.csv\nevaluation: e.csv\n")
    status, said = command(monkeypatch, capsys, "study", file, "-o", tmp_path / "s")
    assert status == 1
    assert said.splitlines() == [
        "error: /out/order.parquet: No space left on device",
        "Make room and start again; what is finished is kept.",
    ]


@pytest.fixture
def read_only(copied: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A finished study that cannot be written to, by root either."""
    if os.geteuid():
        for place in [copied, *copied.rglob("*")]:
            place.chmod(0o500 if place.is_dir() else 0o400)
        yield copied
        for place in [copied, *copied.rglob("*")]:
            place.chmod(0o700)
        return
    disk: Path = request.getfixturevalue("small_disk")
    shutil.copytree(copied, disk / "s")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield disk / "s"


def test_a_folder_that_is_read_only(
    make: Make,
    read_only: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = "Read-only file system|Permission denied"
    with pytest.raises(InputError, match=f"s cannot be written to: ({refused})"):
        run_study(make(seeds=3), read_only)
    assert read_record(read_only).runs_done == 6
    status, said = command(monkeypatch, capsys, "report", read_only)
    assert status == 2
    assert re.fullmatch(rf"error: {read_only}/report: ({refused})\n", said)


# ---- Damaged files -------------------------------------------------------------------------------


def edit_table(file: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(file)
    values = pa.array(change(table[column].to_pylist()), table[column].type)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), file)


def damage(what: str, run: Path) -> Path:
    """Change a file of a finished run, so that it can still be read where that is possible."""
    evaluation = sorted((run / "evaluations").iterdir())[0]
    adapter = run / "adapter" / "adapter_model.safetensors"
    match what:
        case "evaluation cut short":
            evaluation.write_bytes(evaluation.read_bytes()[:-100])
            return evaluation
        case "evaluation edited":
            edit_table(evaluation, "correct", lambda values: [True] * len(values))
            return evaluation
        case "evaluation of another run":
            return Path(shutil.copy(evaluation, run / "evaluations" / "0123456789abcdef.parquet"))
        case "order edited":
            edit_table(run / "order.parquet", "id", lambda ids: ids[::-1])
            return run / "order.parquet"
        case "order gone":
            (run / "order.parquet").unlink()
            return run / "order.parquet"
        case "record edited":
            record = json.loads((run / "tuning.json").read_text())
            (run / "tuning.json").write_text(json.dumps(record | {"seconds": 0.0}))
            return run / "tuning.json"
        case "record cut short":
            (run / "tuning.json").write_text("{")
            return run / "tuning.json"
        case "adapter: one bit":
            content = bytearray(adapter.read_bytes())
            content[-1] ^= 1
            adapter.write_bytes(content)
            return adapter
        case "checksums gone":
            (run / "SHA256SUMS").unlink()
        case "checksums cut short":
            (run / "SHA256SUMS").write_bytes((run / "SHA256SUMS").read_bytes()[:-9])
    return run / "SHA256SUMS"


DAMAGE = (
    "evaluation cut short",
    "evaluation edited",
    "evaluation of another run",
    "order edited",
    "order gone",
    "record edited",
    "record cut short",
    "adapter: one bit",
    "checksums gone",
    "checksums cut short",
)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_run_is_named_and_redone_when_asked(
    make: Make, copied: Path, contents: Contents, what: str
) -> None:
    whole, before = contents(copied), state(copied)
    run = copied / "tunings" / runs_of(copied)[2]["id"]
    file = damage(what, run)
    damaged = state(copied)
    named = rf"{re.escape(str(file))} is .*study FILE -o {re.escape(str(copied))} --repair"
    with pytest.raises(InputError, match=named):
        run_study(make(), copied)
    if "adapter" not in what:  # which no report reads
        with pytest.raises(InputError, match=named):
            read_record(copied)
    assert state(copied) == damaged
    ears = Ears()
    run_study(make(), copied, ears, repair=True)
    assert (ears.began, ears.done, ears.trained) == ((7, 6), 1, 48)
    assert len(ears.notes) == 1
    assert str(file) in ears.notes[0]
    assert contents(copied) == whole
    others = {name: at for name, at in before.items() if run.name not in name}
    assert state(copied).items() >= others.items()
    run_study(make(), copied)
    assert read_record(copied).failures == []


def test_many_damaged_files_make_one_message(make: Make, copied: Path) -> None:
    for run in runs_of(copied):
        for file in (copied / "tunings" / run["id"] / "evaluations").iterdir():
            file.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"And 9 more\. .*redo the 7 runs concerned") as caught:
        run_study(make(), copied)
    assert str(caught.value).count("is not as it was written") == 5


def test_what_may_be_deleted(make: Make, copied: Path, contents: Contents) -> None:
    whole = contents(copied)
    shutil.rmtree(copied / "tunings" / runs_of(copied)[1]["id"] / "adapter")
    shutil.rmtree(copied / "tunings" / runs_of(copied)[3]["id"])
    run_study(make(), copied)
    assert {n for n in whole if n not in contents(copied)} == {
        f"tunings/{runs_of(copied)[1]['id']}/adapter/{name}"
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_checksums_are_what_sha256sum_finds(make: Make, copied: Path, data: Path) -> None:
    run_study(make(evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")]), copied)
    for run in (copied / "tunings").iterdir():
        check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
        subprocess.run(check, cwd=run, check=True)
        listed = {line[66:] for line in (run / "SHA256SUMS").read_text().splitlines()}
        there = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
        assert listed == there - {"SHA256SUMS"}
        assert len(list((run / "evaluations").iterdir())) == 3  # test, along the run, more


def test_a_kill_between_the_checksum_and_the_file(
    make: Make, copied: Path, data: Path, with_more: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is first, so the file is one that is listed and missing: it is scored again."""
    sound = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.parent.name == "evaluations":
            raise KeyboardInterrupt
        return sound(self, target)

    study = make(evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")])
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, copied)
    monkeypatch.undo()
    run_study(study, copied)
    assert read_record(copied).failures == []
    for run in runs_of(copied):
        for e in run["evaluations"]:
            name = f"tunings/{run['id']}/evaluations/{e['id']}.parquet"
            if e["kind"] == "final":
                assert (copied / name).read_bytes() == (with_more / name).read_bytes()


# ---- Changed afterwards --------------------------------------------------------------------------


def test_a_changed_study_file(make: Make, copied: Path, settings: dict[str, Any]) -> None:
    before = state(copied)
    ears = Ears()
    study = make(
        seeds=1,
        strategies=["random", "curriculum", "interleaved"],
        checkpoints={"at": [0.25], "questions": 10},
    )
    run_study(study, copied, ears)
    changed, unasked = ears.notes
    assert changed == (
        "Changed since the last start: "
        "strategies: random, blocked, curriculum -> random, curriculum, interleaved; "
        "seeds: [0, 1] -> [0]; checkpoints.at: [0.5] -> [0.25]."
    )
    assert f"no longer asks for 4 of the finished runs in {copied}/tunings" in unasked
    gone = {(r.arm, r.seed): r.id for r in make_plan(make()).runs if r.arm != "untuned"}
    for arm, seed in [("blocked", 0), ("blocked", 1), ("random", 1), ("curriculum", 1)]:
        assert f"tiny, {arm}, seed {seed} ({gone[arm, seed]})" in unasked
    assert (ears.began, ears.trained) == ((4, 3), 48)
    assert state(copied).items() >= before.items()
    (outcome,) = read_record(copied).outcomes
    assert outcome.seeds == [0]
    assert list(outcome.arms) == ["random", "curriculum", "interleaved"]
    back = Ears()
    run_study(make(), copied, back)
    assert back.began == (7, 7)
    assert len(back.notes) == 2


def test_seeds_that_are_added_to_finished_runs_are_told(make: Make, tmp_path: Path) -> None:
    fewer: dict[str, Any] = {"strategies": ["random"], "checkpoints": {"at": []}}
    for seeds, told in (
        ([0], ""),
        ([0, 7, 8], "Seeds 7, 8 were added when runs of others were finished."),
        ([0, 8], "Seed 8 was added when runs of others were finished."),
        ([0], ""),
    ):
        run_study(make(seeds=seeds, **fewer), tmp_path / "s")
        notes = [note for note in read_record(tmp_path / "s").notes if "added" in note]
        assert [note.partition(" Adding")[0] for note in notes] == ([told] if told else [])


def test_an_unchanged_study_file_says_nothing(make: Make, copied: Path) -> None:
    ears = Ears()
    run_study(make(), copied, ears)
    assert ears.notes == []


def test_an_evaluation_by_another_version(
    make: Make, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored with newer libraries than it was tuned with: that is a mixture, too."""
    sound = work_module.version
    newer = {"transformers": "9.0"}
    monkeypatch.setattr(work_module, "version", lambda name: newer.get(name) or sound(name))
    run_study(make(evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")]), copied)
    versions = read_record(copied).versions
    assert versions["transformers"] == [sound("transformers"), "9.0"]
    assert {name for name, found in versions.items() if len(found) > 1} == {"transformers"}


def test_runs_of_another_version(make: Make, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied / "tunings" / runs_of(copied)[1]["id"]
    record = json.loads((run / "tuning.json").read_text())
    assert record["numerics"] == plan_module.NUMERICS
    record["versions"]["torch"] = "1.13"
    (run / "tuning.json").write_text(json.dumps(record))
    sums = subprocess.run(
        ["sha256sum", *(p.relative_to(run) for p in run.rglob("*") if p.suffix)],
        cwd=run, capture_output=True, check=True,
    )  # fmt: skip
    (run / "SHA256SUMS").write_bytes(sums.stdout)
    found = read_record(copied)
    assert found.versions["torch"] == ["1.13", torch.__version__]
    page = write_report(found, copied / "report").read_text()
    assert "Runs were made with different versions of torch." in page
    old = {run["id"] for run in runs_of(copied)}
    monkeypatch.setattr(plan_module, "NUMERICS", plan_module.NUMERICS + 1)
    assert not old & {run.id for run in make_plan(make()).runs}


# ---- Failing runs --------------------------------------------------------------------------------

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError("Unable to allocate 8.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_run_that_fails(
    make: Make,
    finished: Finished,
    contents: Contents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    folder, sound, calls = tmp_path / "s", tune_module.question_losses, 0

    def fails_in_the_second_run(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise error
        return sound(*arguments)

    monkeypatch.setattr(tune_module, "question_losses", fails_in_the_second_run)
    ears = Ears()
    run_study(make(), folder, ears)
    said = f"tiny, random, seed 1: {type(error).__name__}: {error}"
    assert ears.failures == [said]
    assert ears.done == 6
    record = read_record(folder)
    assert record.failures == [said]
    page = write_report(record, tmp_path / "report").read_text()
    assert "Failed runs" in page
    assert f"seed 1: {type(error).__name__}" in page
    monkeypatch.undo()
    again = Ears()
    run_study(make(), folder, again)
    assert again.began == (7, 6)
    assert contents(folder) == contents(finished[0])
    assert not list((folder / "failures").iterdir())


def test_a_gap_is_not_compared_over(make: Make, tmp_path: Path) -> None:
    """The gain is of the seeds that both have, and the report says which lack."""
    folder = tmp_path / "s"
    run_study(make(seeds=4), folder)
    whole = read_record(folder).outcomes[0]
    runs = {(run["arm"], run["seed"]): run["id"] for run in runs_of(folder)}
    for gap in [("blocked", 1), ("random", 2)]:
        shutil.rmtree(folder / "tunings" / runs[gap])
    record = read_record(folder)
    (result,) = analyse(record).results
    gains = {gain.arm: gain.estimate for gain in result.gains}
    for arm, seeds in {"blocked": [0, 3], "curriculum": [0, 1, 3]}.items():
        expected = (whole.arms[arm][seeds] - whole.arms["random"][seeds]).mean()
        assert gains[arm] is not None
        assert gains[arm].seeds == len(seeds)
        assert gains[arm].mean == pytest.approx(expected)
    # So small a model answers some seeds alike, which has a note of its own.
    assert [note for note in result.notes if "the same scores" not in note] == [
        "blocked: seed 2 has no run of random to be paired with and was left out of the gain.",
        "blocked: seed 1 is missing; the other pairs are used.",
        "curriculum: seed 2 has no run of random to be paired with and was left out of the gain.",
    ]
    said = verdict(record, analyse(record)).caveats
    assert "6 of 8" not in said
    assert "10 of 12 planned runs are done; this speaks of those alone." in said
    page = write_report(record, tmp_path / "report").read_text()
    for note in [*result.notes, "tiny, blocked, seed 1</li>"]:
        assert note in page


def test_folds_with_a_gap_are_left_out(make: Make, data: Path, tmp_path: Path) -> None:
    """A seed of which a fold lacks has scores for a part of the questions only."""
    folder = tmp_path / "s"
    training = [{"data": str(data / "train.jsonl"), "folds": 3}]
    run_study(make(training=training, strategies=["random", "blocked"]), folder)
    whole = {o.evaluation: o for o in read_record(folder).outcomes}
    (gap,) = [
        run["id"]
        for run in runs_of(folder)
        if (run["arm"], run["seed"], run["fold"]) == ("blocked", 1, 2)
    ]
    shutil.rmtree(folder / "tunings" / gap)
    record = read_record(folder)
    assert record.to_do == ["tiny, blocked, seed 1, fold 2"]
    for outcome in record.outcomes:
        expected = whole[outcome.evaluation].arms["blocked"].copy()
        expected[1] = np.nan
        np.testing.assert_array_equal(outcome.arms["blocked"], expected)
        np.testing.assert_array_equal(
            outcome.arms["random"], whole[outcome.evaluation].arms["random"]
        )
        assert np.isnan(outcome.curves["blocked"].values[1, 1:]).all()
    page = write_report(record, tmp_path / "report").read_text()
    assert "blocked: seed 1 is missing; the other pairs are used." in page


@pytest.mark.parametrize("lacks", ["folder", "weights"])
def test_a_model_that_cannot_be_loaded(
    make: Make,
    finished: Finished,
    contents: Contents,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lacks: str,
) -> None:
    folder, other = tmp_path / "s", tmp_path / "other"
    if lacks == "weights":
        shutil.copytree(tiny_llama, other)
        (other / "model.safetensors").write_bytes(b"\0" * 100)
    models = [{"model": str(other), "name": "other"}, {"model": str(tiny_llama), "name": "tiny"}]
    study = make(models=models, workers=1)
    ears = Ears()
    run_study(study, folder, ears)
    loads = [text for text in ears.said if text == "loading other"]
    assert len(loads) == (lacks == "weights")  # not once a run
    tuned = [f"other, {a}, seed {s}: " for a in ("random", "blocked", "curriculum") for s in (0, 1)]
    expected = tuned if lacks == "folder" else ["other, untuned: ", *tuned]
    assert len(ears.failures) == len(expected)
    reason = "There is no model" if lacks == "folder" else "cannot be loaded"
    for said, start in zip(ears.failures, expected, strict=True):
        assert said.startswith(start)
        assert reason in said
        assert str(other) in said
    assert contents(folder) == contents(finished[0])
    record = read_record(folder)
    assert record.failures == ears.failures
    assert (record.runs_done, record.runs_planned) == (6, 12)
    assert str(status_table(folder)[0].title).startswith("tiny study: 6 of 12 runs done")
    blank, full = record.outcomes
    assert (blank.model, full.model) == ("other", "tiny")
    assert all(np.isnan(values).all() for values in blank.arms.values())
    page = write_report(record, tmp_path / "report").read_text()
    assert reason in page
    # Once it is there nothing fails; being a copy of the other, it has that one's runs.
    if lacks == "folder":
        shutil.copytree(tiny_llama, other)
    shutil.copy(tiny_llama / "model.safetensors", other)
    before = state(folder)
    again = Ears()
    run_study(study, folder, again)
    assert again.failures == []
    assert state(folder).items() >= before.items()
    assert not list((folder / "failures").iterdir())
    assert read_record(folder).failures == []


def test_with_no_model_at_all_nothing_begins(make: Make, tmp_path: Path) -> None:
    models = [{"model": str(tmp_path / name)} for name in ("a", "b")]
    with pytest.raises(InputError, match=r"There is no model '.*/a'"):
        run_study(make(models=models), tmp_path / "s")
    assert not (tmp_path / "s" / "plan.json").exists()
