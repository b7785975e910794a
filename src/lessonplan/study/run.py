"""Doing what is missing: each run tuned, scored and written whole, one after the other."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lessonplan.evaluation.predict import predictions, primary
from lessonplan.models import NUMERICS
from lessonplan.study.config import Study
from lessonplan.study.plan import Evaluation, ModelPlan, Plan, RowSet, Run, make_plan
from lessonplan.study.store import (
    TUNING,
    Folder,
    begin,
    locked,
    new_folder,
    write_table,
    write_text,
)
from lessonplan.training.schedule import received

LIBRARIES = ("lessonplan", "torch", "transformers", "peft", "numpy", "datasets", "pyarrow")
# Scoring a question costs about this share of training on it (no backward pass).
SCORING_COST = 0.4


class Watch:
    """Is told how a study goes. This one is silent; the command line draws bars."""

    def begin(self, runs: int, done: int, work: float) -> None:
        """`done` of `runs` are finished; the rest is `work` questions' worth."""

    def say(self, text: str) -> None:
        """What is going on now."""

    def worked(self, work: float, trained: int = 0) -> None:
        """So much work, of it so many questions trained on, is done."""

    def run_done(self) -> None:
        """One more run is finished."""

    def failed(self, text: str) -> None:
        """A run failed; the others go on."""


def run_study(study: Study, path: Path, watch: Watch | None = None) -> Plan:
    """Run what a study folder lacks, and nothing else.

    A run is written under its final name only when whole, so at any moment the process may be
    killed; the next start goes on with what is missing. A run that fails is written down under
    ``failures/`` with its reason, and tried again at the next start.

    Raises:
        InputError: bad data, labels, models or settings; a folder that holds another study or that
            another process works in.
    """
    watch = watch or Watch()
    folder = Folder(path)
    with locked(folder):
        watch.say("reading questions, labels and tokens")
        plan = make_plan(study)
        begin(folder, plan)
        missing = {run.id: _missing(folder, run, study) for run in plan.runs}
        lacking = [run for run in plan.runs if missing[run.id]]
        watch.begin(
            len(plan.runs),
            len(plan.runs) - len(lacking),
            sum(_cost(folder, run, missing[run.id]) for run in lacking),
        )
        for model in plan.models:
            runs = [run for run in model.runs if missing[run.id]]
            if runs:
                ModelWork(plan, model, folder, watch).do(runs, missing)
        return plan


def failures(folder: Folder, plan: Plan) -> list[str]:
    """Return one sentence for each run of the plan that failed."""
    return [
        json.loads(folder.failure(run.id).read_text())["reason"]
        for run in plan.runs
        if folder.failure(run.id).is_file()
    ]


def _missing(folder: Folder, run: Run, study: Study) -> list[Evaluation]:
    """Return the evaluations that a run lacks and that can (still) be had."""
    tuned = folder.has_tuning(run.id)
    lacking = [e for e in run.evaluations if not folder.has_evaluation(run.id, e.id)]
    if tuned and run.order is not None:
        # Checkpoints along a finished run are gone, unless their adapters were kept.
        lacking = [
            e
            for e in lacking
            if e.kind == "final" or all(_adapter(folder, run, c).is_dir() for c in e.checkpoints)
        ]
    return lacking


def _adapter(folder: Folder, run: Run, seen: int) -> Path:
    """Return where the adapter after so many questions is kept."""
    assert run.order is not None
    name = "adapter" if seen == len(run.order) else f"adapter-{seen}"
    return folder.tuning(run.id) / name


def _cost(folder: Folder, run: Run, lacking: Sequence[Evaluation]) -> float:
    trained = 0 if run.order is None or folder.has_tuning(run.id) else len(run.order)
    return trained + SCORING_COST * sum(e.cost for e in lacking)


class ModelWork:
    """One model in memory with its adapter and the hidden states that all its runs share."""

    def __init__(self, plan: Plan, model: ModelPlan, folder: Folder, watch: Watch) -> None:
        from lessonplan.training.train import prepare

        self.plan, self.model, self.folder, self.watch = plan, model, folder, watch
        watch.say(f"loading {model.spec.title}")
        _, self.engine, self.adapter = prepare(
            str(model.folder),
            model.recipe,
            trust_remote_code=model.spec.trust_remote_code,
            cache_bytes=int(plan.study.cache_gib * 2**30),
        )
        self._hidden: dict[tuple[str, str], Any] = {}

    def do(self, runs: Sequence[Run], missing: dict[str, list[Evaluation]]) -> None:
        """Do all runs of the model; one that fails is noted and the next goes on."""
        from lessonplan.training.tune import TuningError

        for run in runs:
            self.watch.say(
                f"{run.model}, {run.arm}" + (f", seed {run.seed}" if run.order is not None else "")
            )
            failure = self.folder.failure(run.id)
            try:
                if self.folder.has_tuning(run.id):
                    self._evaluate_again(run, missing[run.id])
                else:
                    self._tune_and_evaluate(run)
            except (TuningError, MemoryError, RuntimeError) as error:
                text = f"{run.model}, {run.arm}, seed {run.seed}: {type(error).__name__}: {error}"
                write_text(failure, json.dumps({"id": run.id, "reason": text}))
                self.watch.failed(text)
                continue
            failure.unlink(missing_ok=True)
            self.watch.run_done()

    def _tune_and_evaluate(self, run: Run) -> None:
        from lessonplan.training.tune import tune

        started = time.perf_counter()
        tables: dict[str, list[pa.Table]] = {e.id: [] for e in run.evaluations}
        spent: dict[str, float] = {"scoring": 0.0}
        recipe = self.model.recipe
        with new_folder(self.folder.tuning(run.id)) as scratch:

            def score(seen: int) -> None:
                at = time.perf_counter()
                for evaluation in run.evaluations:
                    if seen in evaluation.checkpoints:
                        tables[evaluation.id].append(self._score(evaluation, seen))
                spent["scoring"] += time.perf_counter() - at

            log: dict[str, Any] = {}
            if run.order is None:
                self.adapter.zero()
                score(0)
            else:
                data = self.model.rows[run.training]
                keep_all = self.plan.study.keep_adapters == "all"
                told = 0

                def step(seen: int) -> None:
                    nonlocal told
                    self.watch.worked(seen - told, trained=seen - told)
                    told = seen

                def checkpoint(seen: int) -> None:
                    score(seen)
                    if keep_all and run.order is not None and seen < len(run.order):
                        self.adapter.save(scratch / f"adapter-{seen}", self.model.spec.model)

                result = tune(
                    self.engine,
                    self.adapter,
                    data.train,
                    run.order,
                    recipe,
                    seed=run.training_seed,
                    hidden=self._lower(data, "train" if recipe.loss == "answer" else "score"),
                    answers=np.asarray(data.questions.questions["answer"][:], dtype=np.int64),
                    score=primary(self.plan.study.scoring),
                    checkpoints=[c for e in run.evaluations for c in e.checkpoints],
                    on_checkpoint=checkpoint,
                    on_step=step,
                )
                log = {
                    "losses": [float(f"{x:.6g}") for x in result.losses],
                    "learning_rates": [float(f"{x:.6g}") for x in result.learning_rates],
                }
                if self.plan.study.keep_adapters != "none":
                    self.adapter.save(scratch / "adapter", self.model.spec.model)
                ids = data.questions.questions["id"][:]
                write_table(
                    scratch / "order.parquet",
                    pa.table(
                        {
                            "id": [ids[i] for i in run.order],
                            "learning_rate": received(recipe, len(run.order)),
                        }
                    ),
                )
            for evaluation in run.evaluations:
                write_table(
                    scratch / "evaluations" / f"{evaluation.id}.parquet",
                    pa.concat_tables(tables[evaluation.id]),
                )
            seconds = time.perf_counter() - started
            write_text(
                scratch / TUNING,
                json.dumps(self._record(run, log, seconds, spent["scoring"]), indent=1),
            )

    def _evaluate_again(self, run: Run, lacking: Sequence[Evaluation]) -> None:
        """Score a finished tuning on what was added to the study since."""
        from lessonplan.models.lora import load_weights

        for evaluation in lacking:
            parts = []
            for seen in evaluation.checkpoints:
                if run.order is None:
                    self.adapter.zero()
                elif (kept := _adapter(self.folder, run, seen)).is_dir():
                    load_weights(self.adapter, kept)
                else:
                    raise RuntimeError(
                        "its adapter was not kept (keep_adapters: none), so it cannot be scored "
                        f"anew. Delete {self.folder.tuning(run.id)} to have it tuned again."
                    )
                parts.append(self._score(evaluation, seen))
            write_table(self.folder.evaluation(run.id, evaluation.id), pa.concat_tables(parts))

    def _lower(self, data: RowSet, which: str) -> Any:
        """Return the lower layers' output for one of a set's kinds of rows, computed once."""
        key = (data.questions.name, which)
        if key not in self._hidden:
            if self.engine.keep_below:
                self.watch.say(f"lower layers of {self.model.spec.title} on {data.questions.name}")
            self._hidden[key] = self.engine.lower(getattr(data, which) or [])
        return self._hidden[key]

    def _score(self, evaluation: Evaluation, seen: int) -> pa.Table:
        data = self.model.rows[evaluation.questions]
        scoring = self.plan.study.scoring
        # Along a run only the primary score is needed.
        whole = evaluation.kind == "final" or scoring.score == "unconditional"
        table = predictions(
            self.engine,
            data.questions.questions,
            data.score,
            data.unconditional if whole else None,
            scoring,
            hidden=self._lower(data, "score"),
            hidden_unconditional=self._lower(data, "unconditional") if whole else None,
            part=evaluation.indices,
            checkpoint=seen,
        )
        self.watch.worked(SCORING_COST * len(table))
        return table

    def _record(
        self, run: Run, log: dict[str, Any], seconds: float, scoring: float
    ) -> dict[str, Any]:
        return {
            "id": run.id,
            "model": run.model,
            "model_digest": self.model.digest,
            "training": run.training,
            "arm": run.arm,
            "strategy": run.strategy,
            "sources": run.sources,
            "seed": run.seed,
            "training_seed": run.training_seed,
            "fold": run.fold,
            "questions": 0 if run.order is None else len(run.order),
            "recipe": self.model.recipe.model_dump(),
            "shortcuts": {
                "sharing": self.engine.sharing,
                "reading": self.engine.reading,
                "kept_layers": self.engine.keep_below,
            },
            "numerics": NUMERICS,
            "versions": {name: version(name) for name in LIBRARIES},
            "machine": {"processor": processor(), "python": platform.python_version()},
            "seconds": round(seconds, 3),
            "scoring_seconds": round(scoring, 3),
            **log,
        }


def processor() -> str:
    """Return the processor's name in words."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
