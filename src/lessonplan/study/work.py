"""Runs of a study, one or several in lock-step: tuned, scored, and written whole."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lessonplan.errors import InputError, without_secrets
from lessonplan.evaluation.predict import are_finite, predictions, primary
from lessonplan.models import NUMERICS
from lessonplan.models.rows import Row, rows_digest
from lessonplan.study.checksums import add_sum, write_sums
from lessonplan.study.files import digest, naming, new_file, new_folder, write_table, write_text
from lessonplan.study.plan import Evaluation, ModelPlan, Plan, Run, numerics
from lessonplan.study.store import TUNING, Folder
from lessonplan.study.watch import Watch
from lessonplan.training.recipe import Recipe
from lessonplan.training.schedule import received

if TYPE_CHECKING:
    from lessonplan.models.lora import Adapter
    from lessonplan.training.tune import TuningLog

LIBRARIES = ("lessonplan", "torch", "transformers", "peft", "numpy", "datasets", "pyarrow")
# What ends one run and leaves the others to go on. A CUDA device out of memory is a RuntimeError.
FAILURES = (RuntimeError, MemoryError, InputError)
# Scoring a question costs about this share of training on it (no backward pass).
SCORING_COST = 0.4


def missing(folder: Folder, run: Run) -> list[Evaluation]:
    """Return the evaluations that a run lacks and that can (still) be had."""
    if not folder.has_tuning(run.id):
        return list(run.evaluations)
    lacking = [e for e in run.evaluations if not folder.has_evaluation(run.id, e.id)]
    if run.order is not None:
        # Checkpoints along a finished run are gone, unless their adapters were kept.
        lacking = [
            e
            for e in lacking
            if e.kind == "final" or all(_adapter(folder, run, c).is_dir() for c in e.checkpoints)
        ]
    return lacking


def cost(folder: Folder, run: Run) -> float:
    """Return the work that a run still needs, in questions trained on."""
    trained = 0 if run.order is None or folder.has_tuning(run.id) else len(run.order)
    return trained + SCORING_COST * sum(e.cost for e in missing(folder, run))


def write_failure(folder: Folder, run: Run, reason: str) -> None:
    """Write down why a run failed, until it is tried again."""
    told = {"id": run.id, "reason": without_secrets(reason)}
    write_text(folder.failure(run.id), json.dumps(told))


def _adapter(folder: Folder, run: Run, seen: int) -> Path:
    """Return where the adapter after so many questions is kept."""
    assert run.order is not None
    name = "adapter" if seen == len(run.order) else f"adapter-{seen}"
    return folder.tuning(run.id) / name


def lockstep_groups(folder: Folder, plan: Plan, lacking: Sequence[Run]) -> list[list[Run]]:
    """Return the runs to do, those together that a worker tunes in lock-step.

    They have the model, the questions, the number of steps and the checkpoints in common. Groups
    are as even as they can be, and depend on nothing else: a run's last digits may depend on its
    company, and shall not on how many workers there are.
    """
    alike: dict[Any, list[Run]] = {}
    for run in lacking:
        key: Any = run.id
        if run.order is not None and not folder.has_tuning(run.id):
            seen = {c for e in run.evaluations for c in e.checkpoints}
            key = (run.model, run.training, len(run.order), frozenset(seen))
        alike.setdefault(key, []).append(run)
    groups = []
    for runs in alike.values():
        n = -(-len(runs) // plan.study.lockstep)
        groups += [runs[k * len(runs) // n : (k + 1) * len(runs) // n] for k in range(n)]
    return groups


@dataclass
class _UnderWay:
    """A run that is being tuned.

    Attributes:
        scratch: the folder that becomes its own when it is whole.
        tables: by evaluation, what was scored so far.
    """

    run: Run
    adapter: Adapter
    scratch: Path
    scoring_seconds: float = 0.0
    tables: dict[str, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))


class ModelWork:
    """One model in memory with its adapter and the hidden states that all its runs share.

    The model is loaded for the first run. If that fails, all its runs fail for the same reason.

    Args:
        shared: folder for hidden states, which all workers of a study read.
    """

    def __init__(
        self, plan: Plan, model: ModelPlan, folder: Folder, shared: Path, watch: Watch
    ) -> None:
        self.plan, self.model, self.folder = plan, model, folder
        self.shared, self.watch = shared, watch
        self.engine: Any = None
        self.adapter: Any = None
        self.problem = model.problem
        self._told = (0.0, 0)  # work, and questions trained on
        self._hidden: dict[str, Any] = {}

    def _load(self) -> None:
        from lessonplan.training.train import prepare

        if self.problem is not None:
            raise self.problem
        self.watch.say(f"loading {self.model.spec.title}")
        try:
            _, self.engine, self.adapter = prepare(
                str(self.model.folder),
                self.model.recipe,
                trust_remote_code=self.model.spec.trust_remote_code,
            )
        except FAILURES as error:
            self.problem = InputError(_said(error))
            raise self.problem from error

    def do(self, run: Run) -> None:
        """Do what one run lacks. If it fails, write down why; the others can go on.

        Raises:
            OSError: the disk is full or fails; no other run would fare better.
        """
        try:
            if self.engine is None:
                self._load()
            self.watch.say(run.title)
            if self.folder.has_tuning(run.id):
                self._evaluate_again(run)
            else:
                self._tune_and_evaluate([run])
        except FAILURES as error:
            text = f"{run.title}: {_said(error)}"
            write_failure(self.folder, run, text)
            self.watch.failed(text)
        else:
            self._done(run)

    def do_in_lockstep(self, runs: Sequence[Run]) -> None:
        """Do runs that `lockstep_groups` puts together; where that fails, one after the other.

        Raises:
            OSError: see `do`.
        """
        if len(runs) > 1 and self.done_in_lockstep(runs):
            return
        for run in runs:
            self.do(run)

    def done_in_lockstep(self, runs: Sequence[Run]) -> bool:
        """Do several runs in lock-step; say whether it went well. If not, nothing is kept.

        Raises:
            OSError: see `do`.
        """
        self._told = (0.0, 0)
        try:
            if self.engine is None:
                self._load()
            if not self.engine.packing:  # which the engine has said
                return False
            self.watch.say(f"{runs[0].title}, in lock-step with {len(runs) - 1} more")
            self._tune_and_evaluate(runs)
        except FAILURES as error:
            # Which of them it is, and why, is written down when each is done by itself.
            if self.engine is not None:
                work, trained = self._told
                self.watch.worked(-work, trained=-trained)
                self.watch.note(f"{runs[0].title} and the runs beside it go one by one: {error}")
            return False
        for run in runs:
            self._done(run)
        return True

    def _done(self, run: Run) -> None:
        self.folder.failure(run.id).unlink(missing_ok=True)
        self.watch.run_done()

    def _worked(self, work: float, trained: int = 0) -> None:
        self._told = (self._told[0] + work, self._told[1] + trained)
        self.watch.worked(work, trained=trained)

    def _tune_and_evaluate(self, runs: Sequence[Run]) -> None:
        started = time.perf_counter()
        with ExitStack() as stack:
            under_way = [
                _UnderWay(run, adapter, stack.enter_context(new_folder(self.folder.tuning(run.id))))
                for run, adapter in zip(runs, self.adapter.several(len(runs)), strict=True)
            ]
            logs = self._tune(under_way)
            scoring = sum(one.scoring_seconds for one in under_way)
            tuning = (time.perf_counter() - started - scoring) / len(under_way)
            for one, log in zip(under_way, logs, strict=True):
                with naming(self.folder.tuning(one.run.id)):
                    self._write(one, log, tuning + one.scoring_seconds, len(under_way))

    def _tune(self, under_way: Sequence[_UnderWay]) -> Sequence[TuningLog | None]:
        """Tune runs on the same questions, and score each at its checkpoints and at its end."""
        from lessonplan.training.tune import tune_in_lockstep

        run, recipe = under_way[0].run, self.model.recipe
        if run.order is None:
            self.adapter.zero()
            self._score_at(under_way[0], 0)
            return [None]
        told = 0

        def step(seen: int) -> None:
            nonlocal told
            trained = len(under_way) * (seen - told)
            self._worked(trained, trained=trained)
            told = seen

        if recipe.trainer == "trl":
            log = self._tune_with_trl(run, under_way[0].scratch / "trl", step)
            self._score_at(under_way[0], len(run.order))
            return [log]
        keep_all = self.plan.study.keep_adapters == "all"

        def checkpoint(k: int, seen: int) -> None:
            one = under_way[k]
            self._score_at(one, seen)
            if keep_all and one.run.order is not None and seen < len(one.run.order):
                one.adapter.save(one.scratch / f"adapter-{seen}", self.model.spec.model)

        data = self.model.rows[run.training]
        return tune_in_lockstep(
            self.engine,
            [one.adapter for one in under_way],
            data.train,
            [one.run.order for one in under_way if one.run.order is not None],
            recipe,
            seeds=[one.run.training_seed for one in under_way],
            hidden=self._lower(data.train),
            answers=np.asarray(data.questions.questions["answer"][:], dtype=np.int64),
            score=primary(self.plan.study.scoring),
            checkpoints=[c for e in run.evaluations for c in e.checkpoints],
            on_checkpoint=checkpoint,
            on_step=step,
        )

    def _score_at(self, one: _UnderWay, seen: int) -> None:
        at = time.perf_counter()
        for evaluation in one.run.evaluations:
            if seen in evaluation.checkpoints:
                one.tables[evaluation.id].append(self._score(evaluation, seen))
        one.scoring_seconds += time.perf_counter() - at

    def _write(self, one: _UnderWay, log: TuningLog | None, seconds: float, lockstep: int) -> None:
        run, scratch = one.run, one.scratch
        told: dict[str, Any] = {}
        if run.order is not None and log is not None:
            told = {
                "lockstep": lockstep,
                "losses": [float(f"{x:.6g}") for x in log.losses],
                "learning_rates": [float(f"{x:.6g}") for x in log.learning_rates],
            }
            if self.plan.study.keep_adapters != "none":
                one.adapter.save(scratch / "adapter", self.model.spec.model)
            ids = self.model.rows[run.training].questions.questions["id"][:]
            write_table(
                scratch / "order.parquet",
                pa.table(
                    {
                        "id": [ids[i] for i in run.order],
                        "learning_rate": received(self.model.recipe, len(run.order)),
                    }
                ),
            )
        for evaluation in run.evaluations:
            write_table(
                scratch / "evaluations" / f"{evaluation.id}.parquet",
                _joined(one.tables[evaluation.id], self.model.recipe),
            )
        record = self._record(run, told, seconds, one.scoring_seconds)
        write_text(scratch / TUNING, json.dumps(record, indent=1))
        write_sums(scratch)

    def _tune_with_trl(self, run: Run, scratch: Path, step: Callable[[int], None]) -> TuningLog:
        """Tune through TRL and take its adapter over. There is no scoring along the way."""
        from lessonplan.models.lora import load_weights
        from lessonplan.training.with_trl import tune_with_trl

        assert run.order is not None
        log = tune_with_trl(
            self.model.folder,
            self.model.rows[run.training].train,
            run.order,
            self.model.recipe,
            seed=run.training_seed,
            out=scratch,
            trust_remote_code=self.model.spec.trust_remote_code,
            on_step=step,
        )
        load_weights(self.adapter, scratch)
        shutil.rmtree(scratch)
        return log

    def _evaluate_again(self, run: Run) -> None:
        """Score a finished tuning on what was added to the study since."""
        from lessonplan.models.lora import load_weights

        for evaluation in missing(self.folder, run):
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
            file = self.folder.evaluation(run.id, evaluation.id)
            with new_file(file) as scratch:
                pq.write_table(_joined(parts, self.model.recipe), scratch)
                add_sum(self.folder.tuning(run.id), f"evaluations/{file.name}", scratch)

    def _lower(self, rows: Sequence[Row] | None) -> Any:
        """Return the lower layers' output for a set of rows, computed once for all runs."""
        if not rows or not self.engine.keep_below:
            return None
        key = digest([numerics(self.model), self.engine.keep_below, rows_digest(rows)])
        if key not in self._hidden:
            with naming(self.shared):
                self._hidden[key] = self.engine.lower(rows, self.shared / key)
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
            hidden=self._lower(data.score),
            hidden_unconditional=self._lower(data.unconditional.rows)
            if whole and data.unconditional
            else None,
            part=evaluation.indices,
            checkpoint=seen,
        )
        # The last step of a run can ruin the weights after its loss was still a number.
        if not are_finite(table):
            raise RuntimeError(
                f"After {seen} questions the log-likelihoods of {evaluation.of} are no finite "
                "numbers. A lower learning_rate usually helps."
            )
        self._worked(SCORING_COST * len(table))
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
            "scored": sum(evaluation.cost for evaluation in run.evaluations),
            "recipe": self.model.recipe.model_dump(),
            "shortcuts": {
                "sharing": self.engine.sharing,
                "reading": self.engine.reading,
                "narrowing": self.engine.narrowing,
                "kept_layers": self.engine.keep_below,
            },
            "numerics": NUMERICS,
            "versions": _versions(self.model.recipe),
            "machine": _machine(self.model.recipe.device),
            "seconds": round(seconds, 3),
            "scoring_seconds": round(scoring, 3),
            **log,
        }


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _joined(parts: list[pa.Table], recipe: Recipe) -> pa.Table:
    """Return one evaluation, with the versions that made it: it can be later than its tuning."""
    made_by = {"versions": json.dumps(_versions(recipe))}
    return pa.concat_tables(parts).replace_schema_metadata(made_by)


def _versions(recipe: Recipe) -> dict[str, str]:
    names = [*LIBRARIES]
    if recipe.quantization != "none" or recipe.optimizer != "adamw":
        names.append("bitsandbytes")
    if recipe.trainer == "trl":
        names += ["trl", "accelerate"]
    return {name: version(name) for name in names}


def _machine(device: str) -> dict[str, str]:
    """Return what a run was made on."""
    found = {"processor": processor(), "python": platform.python_version()}
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def processor() -> str:
    """Return the processor's name in words."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
