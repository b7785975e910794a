"""What a study says while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lessonplan.progress import StudyProgress
from lessonplan.study import Study, run_study
from lessonplan.study import run as run_module
from lessonplan.study.plan import make_plan
from tests.study.ears import Ears

Make = Callable[..., Study]


def test_without_a_terminal_progress_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with StudyProgress() as watch:
        watch.begin(3, 1, 100.0)
        watch.say("tiny, curriculum [difficulty=llm], seed 0")
        watch.worked(50.0, trained=50)
        watch.run_done()
        watch.failed("tiny, blocked [/odd]: no memory")
        watch.run_done()
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\r" not in said
    assert said.splitlines()[0] == "3 runs, 1 of them done"
    assert "failed: tiny, blocked [/odd]: no memory" in said
    assert said.splitlines()[-1].startswith("3/3 runs  ")
    assert said.splitlines()[-1].endswith("questions/s")
    assert watch.failures == ["tiny, blocked [/odd]: no memory"]


def test_with_nothing_to_do_progress_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress() as watch:
        watch.begin(3, 3, 0.0)
        watch.say("nothing")
    assert capsys.readouterr().err == "all 3 runs are done\n"


def test_on_a_terminal_names_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with StudyProgress() as watch:
        watch.begin(2, 0, 100.0)
        watch.say("tiny, curriculum [difficulty=llm], seed 0 [/odd]")
        watch.worked(50.0, trained=50)
        watch.run_done()
    assert "curriculum [difficulty=llm], seed 0 [/odd]" in capsys.readouterr().err


def test_work_adds_up(make: Make, tmp_path: Path) -> None:
    ears = Ears()
    run_study(make(seeds=1), tmp_path / "s", ears)
    assert ears.done == 4
    assert abs(ears.work) < 1e-6


@pytest.mark.parametrize(
    ("cores", "threads", "workers", "lacking", "said"),
    [
        (8, 1, 1, 100, "`workers: 8`"),
        (8, 1, 1, 3, "`workers: 3`"),  # no more than there are runs
        (8, 2, 1, 100, "`workers: 4`"),
        (9, 4, 2, 100, None),
        (2, 1, 2, 100, None),
        (2, 2, 1, 100, None),
        (2, 2, 2, 100, "2 workers of 2 threads each get in each other's way on 2 cores"),
        (1, 2, 1, 100, None),  # nothing that fewer workers would help
        (8, 1, 1, 0, None),
    ],
)
def test_cores_that_stay_idle_or_are_wanted_twice(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    threads: int,
    workers: int,
    lacking: int,
    said: str | None,
) -> None:
    monkeypatch.setattr(run_module, "_cores", lambda: cores)
    plan = make_plan(make(recipe={"threads": threads}))
    notes = list(run_module._cores_used(plan, workers, lacking))
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_a_study_says_that_cores_stay_idle(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_cores", lambda: 3)
    ears = Ears()
    run_study(make(seeds=1, strategies=["random"]), tmp_path / "s", ears)
    assert ["`workers: 2`" in note for note in ears.notes] == [True]
