"""From a study folder back to arrays: the record that statistics and report are made from."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lessonplan.data.features import are_completions
from lessonplan.evaluation.outcomes import (
    Curve,
    LabelCheck,
    LabelSource,
    OrderPicture,
    Outcome,
    Record,
)
from lessonplan.evaluation.scores import LIKELIHOODS, weighted_f1
from lessonplan.models.scores import option_scores
from lessonplan.study.files import read_json, read_table
from lessonplan.study.plan import UNTUNED, elsewhere, held_out_name, run_title, tuned_on_name
from lessonplan.study.shown import shown_categories
from lessonplan.study.store import TUNING, Folder, check_runs, open_folder

RunRecord = dict[str, Any]


def read_record(path: str | PathLike[str]) -> Record:
    """Read a study folder, finished or not.

    Raises:
        InputError: no study there, or a file of it is broken or not as it was written; names it.
    """
    folder = open_folder(Path(path))
    plan = read_json(folder.plan_file)
    check_runs(folder, (run["id"] for run in plan["runs"]), adapters=False)
    tuned = [run for run in plan["runs"] if run["arm"] != UNTUNED]
    done = [run for run in plan["runs"] if folder.has_tuning(run["id"])]
    states = [(run, folder.state(run)) for run in plan["runs"]]
    details = {run["id"]: read_json(folder.tuning(run["id"]) / TUNING) for run in done}
    data = {name: read_table(folder.data(name)) for name in plan["training"] + plan["evaluation"]}
    return Record(
        title=plan["study"],
        outcomes=_outcomes(folder, plan, data),
        orders=_orders(folder, plan, data),
        label_checks=_label_checks(folder, plan, data),
        label_sources=[_label_source(entry, data[entry["training"]]) for entry in plan["labels"]],
        config=folder.study_file.read_text(encoding="utf-8"),
        recipe=_recipe_words(plan),
        versions=_versions(folder, done, details),
        notes=plan["notes"] + _added_seeds(plan),
        runs_done=sum(state == "done" and run["arm"] != UNTUNED for run, state in states),
        runs_planned=len(tuned),
        failures=[
            str(read_json(folder.failure(run["id"]))["reason"])
            for run, state in states
            if state == "failed"
        ],
        unfinished=[_title(run) for run, state in states if state == "unfinished"],
        to_do=[_title(run) for run, state in states if state == "to do"],
        seconds=sum(detail["seconds"] for detail in details.values()),
        machine=_machine(details),
    )


def _added_seeds(plan: dict[str, Any]) -> list[str]:
    first = plan.get("first_seeds", plan["seeds"])
    added = [str(seed) for seed in plan["seeds"] if seed not in first]
    if not added:
        return []
    one = len(added) == 1
    return [
        f"{'Seed' if one else 'Seeds'} {', '.join(added)} {'was' if one else 'were'} added when "
        "runs of others were finished. Adding seeds until a gain shows makes luck look like one: "
        "p-values hold for a number of seeds that was fixed before."
    ]


def _outcomes(folder: Folder, plan: dict[str, Any], data: dict[str, pa.Table]) -> list[Outcome]:
    grouped: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for run in plan["runs"]:
        if run["arm"] != UNTUNED:
            for name in dict.fromkeys(e["of"] for e in run["evaluations"]):
                grouped[run["model"], run["training"], name].append(run)
    tuned = {(model, training): runs for (model, training, _), runs in grouped.items()}
    shown = {
        key: shown_categories(folder, data[key[1]], runs, plan["seeds"])
        for key, runs in tuned.items()
    }
    return [
        replace(
            _outcome(folder, plan, data, model, training, name, runs),
            shown=shown[model, training][0],
            taught=shown[model, training][1],
        )
        for (model, training, name), runs in grouped.items()
    ]


def _outcome(
    folder: Folder,
    plan: dict[str, Any],
    data: dict[str, pa.Table],
    model: str,
    training: str,
    name: str,
    runs: list[RunRecord],
) -> Outcome:
    of = training if name == held_out_name(training) else name
    questions = data[of]
    ids = questions["id"].to_pylist()
    place = {identifier: i for i, identifier in enumerate(ids)}
    options = questions["options"].to_pylist()
    completions = are_completions({"options": options})
    seeds = list(plan["seeds"])
    right = {run["arm"]: np.zeros((len(seeds), len(ids))) for run in runs}
    scored = {arm: np.zeros_like(values) for arm, values in right.items()}
    # Held-out folds make one list of choices together; elsewhere each fold's model makes its own.
    chosen: dict[tuple[str, int], list[NDArray[np.int64]]] = defaultdict(list)
    along: dict[str, list[tuple[int, pa.Table]]] = defaultdict(list)
    finals: dict[str, int] = {}
    # Folds make one result together: where one lacks, the others are no run to be compared.
    gaps = {
        (run["arm"], run["seed"])
        for run in runs
        for e in run["evaluations"]
        if (e["of"], e["kind"]) == (name, "final") and not folder.has_evaluation(run["id"], e["id"])
    }
    for run in runs:
        row = seeds.index(run["seed"])
        for evaluation in run["evaluations"]:
            file = folder.evaluation(run["id"], evaluation["id"])
            lacks = (run["arm"], run["seed"]) in gaps or not file.is_file()
            if evaluation["of"] != name or lacks:
                continue
            table = read_table(file)
            if evaluation["kind"] == "final":
                rows = _rows(table, place)
                right[run["arm"]][row, rows] += _scores(table)
                scored[run["arm"]][row, rows] += 1
                if not completions:
                    choices = chosen[run["arm"], row]
                    if of != training or not choices:
                        choices.append(np.full(len(ids), -1, dtype=np.int64))
                    choices[-1][rows] = table["chosen"].to_numpy()
                end = int(table["checkpoint"][0].as_py())
                finals[run["arm"]] = max(end, finals.get(run["arm"], 0))
            else:
                along[run["arm"]].append((row, table))
    # Several folds' models answer the same questions of a separate set: one seed's value is their
    # mean.
    arms = {arm: _mean(right[arm], scored[arm]) for arm in right}
    answers = questions["answer"].to_numpy()
    form = plan["scoring"]["form"]
    apart = elsewhere({"options": options}, form)
    kept = ~apart if not apart.all() else np.ones(len(ids), dtype=bool)  # as the accuracy
    f1 = {arm: _f1(answers, [chosen[arm, row] for row in range(len(seeds))], kept) for arm in arms}
    untuned = np.full(len(ids), np.nan)
    base = _untuned_table(folder, plan, model, of)
    if base is not None:
        rows = _rows(base, place)
        untuned[rows] = _scores(base)
        if not completions:
            choices_untuned = np.full(len(ids), -1, dtype=np.int64)
            choices_untuned[rows] = base["chosen"].to_numpy()
            f1[UNTUNED] = _f1(answers, [[choices_untuned]], kept)
    texts = [o[a] for o, a in zip(options, answers, strict=True)]
    outcome = Outcome(
        model=model,
        evaluation=name
        if len(plan["training"]) == 1 or of == training
        else tuned_on_name(name, training),
        seeds=seeds,
        ids=ids,
        arms=arms,
        strategies={run["arm"]: run["strategy"] for run in runs},
        sources={run["arm"]: run["sources"] for run in runs},
        baseline=plan["baseline"],
        untuned=None if np.isnan(untuned).any() else untuned,
        f1=f1,
        questions=questions["question"].to_pylist(),
        options=options,
        answers=answers,
        n_options=np.array([len(o) for o in options], dtype=np.int64),
        letters_matter=form == "letter",
        categories=_categories(questions["category"]),
        difficulty=_numbers(questions["difficulty"]),
        answer_seen=_seen(data[training], texts, of == training),
        curves=_curves(arms, along, finals, untuned, place),
        folds=plan["folds"].get(training, 1) if of == training else 1,
        meaningless=apart if form == "cloze" else None,
    )
    if not completions:
        return outcome
    return replace(
        outcome,
        metric=LIKELIHOODS[plan["scoring"]["score"]],
        f1={},
        answers=None,
        n_options=None,
        answer_seen=None,
        meaningless=None,
    )


def _rows(table: pa.Table, place: dict[str, int]) -> list[int]:
    return [place[identifier] for identifier in table["id"].to_pylist()]


def _scores(table: pa.Table) -> NDArray[np.float64]:
    """Return the value of each completion, or whether each question was answered right."""
    name = "value" if "value" in table.column_names else "correct"
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _mean(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return total / count, NaN where nothing was counted."""
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _f1(
    answers: NDArray[np.int64],
    runs: Sequence[Sequence[NDArray[np.int64]]],
    kept: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the weighted F1 of each run over the questions kept, float64 ``[runs]``.

    The mean over its models' choices; NaN where a run is missing.
    """
    found = np.full(len(runs), np.nan)
    for row, choices in enumerate(runs):
        if choices and not any((c < 0).any() for c in choices):
            found[row] = np.mean([weighted_f1(answers[kept], c[kept]) for c in choices])
    return found


def _curves(
    arms: dict[str, NDArray[np.float64]],
    along: dict[str, list[tuple[int, pa.Table]]],
    finals: dict[str, int],
    untuned: NDArray[np.float64],
    place: dict[str, int],
) -> dict[str, Curve]:
    """Join untuned model, checkpoints and end on the questions that were scored on the way."""
    curves = {}
    for arm, tables in along.items():
        part = sorted({place[i] for _, table in tables for i in table["id"].unique().to_pylist()})
        column = {i: j for j, i in enumerate(part)}
        # Folds differ by a question in size; their first checkpoints are one point, and so on.
        steps = [sorted(set(table["checkpoint"].to_pylist())) for _, table in tables]
        points = [
            sum(at) // len(at)
            for j in range(max(map(len, steps)))
            if (at := [step[j] for step in steps if j < len(step)])
        ]
        seen = [0, *points, *([finals[arm]] if arm in finals else [])]
        right = np.zeros((len(arms[arm]), len(seen), len(part)))
        scored = np.zeros_like(right)
        for (row, table), step in zip(tables, steps, strict=True):
            where = [column[place[i]] for i in table["id"].to_pylist()]
            at = [1 + step.index(c) for c in table["checkpoint"].to_pylist()]
            right[row, at, where] += _scores(table)
            scored[row, at, where] += 1
        values = _mean(right, scored)
        values[:, 0] = untuned[part]
        if arm in finals:
            values[:, -1] = arms[arm][:, part]
        curves[arm] = Curve(np.array(seen, dtype=np.int64), values, np.array(part, dtype=np.int64))
    return curves


def _orders(folder: Folder, plan: dict[str, Any], data: dict[str, pa.Table]) -> list[OrderPicture]:
    """Return one picture an arm: the first seed (and fold) that was run, of the first model."""
    pictures = []
    shown: set[tuple[str, str]] = set()
    for run in plan["runs"]:
        file = folder.tuning(run["id"]) / "order.parquet"
        key = (run["training"], run["arm"])
        if run["arm"] == UNTUNED or key in shown or not file.is_file():
            continue
        shown.add(key)
        order = read_table(file)
        table = data[run["training"]]
        place = {identifier: i for i, identifier in enumerate(table["id"].to_pylist())}
        rows = [place[i] for i in order["id"].to_pylist()]
        categories = _label(table, "category", run["sources"].get("category"))
        difficulty = _label(table, "difficulty", run["sources"].get("difficulty"))
        pictures.append(
            OrderPicture(
                training=run["training"],
                arm=run["arm"],
                seed=run["seed"],
                categories=None if categories is None else [categories[i] for i in rows],
                difficulty=None if difficulty is None else np.asarray(difficulty)[rows],
                learning_rate=order["learning_rate"].to_numpy(),
            )
        )
    return pictures


def _label(table: pa.Table, kind: str, source: str | None) -> Any:
    """Return a label of all questions under a source (the set's first where none is named)."""
    names = [name for name in table.column_names if name.startswith(f"{kind}: ")]
    name = f"{kind}: {source}" if source else (names[0] if names else "")
    if name not in names:
        return None
    return _categories(table[name]) if kind == "category" else _numbers(table[name])


def _label_checks(
    folder: Folder, plan: dict[str, Any], data: dict[str, pa.Table]
) -> list[LabelCheck]:
    checks = []
    for model in dict.fromkeys(run["model"] for run in plan["runs"]):
        for training in plan["training"]:
            losses = _untuned_losses(folder, plan, model, training)
            if losses is None:
                continue
            table = data[training]
            for name in table.column_names:
                if name.startswith("difficulty: "):
                    difficulty = _numbers(table[name])
                    if difficulty is not None:
                        source = name.removeprefix("difficulty: ")
                        checks.append(LabelCheck(model, training, source, difficulty, losses))
    return checks


def _label_source(entry: dict[str, str], table: pa.Table) -> LabelSource:
    column = f"{entry['kind']}: {entry['source']}"
    values: Any = table[column].to_pylist()
    if entry["kind"] == "difficulty":
        values = np.array([np.nan if value is None else value for value in values])
    place = f"place: {column}"
    return LabelSource(
        **entry,
        values=values,
        answers=None if are_completions(table) else table["answer"].to_numpy(),
        place=np.array(table[place].to_pylist()) if place in table.column_names else None,
    )


def _untuned_table(folder: Folder, plan: dict[str, Any], model: str, of: str) -> pa.Table | None:
    for run in plan["runs"]:
        if run["arm"] == UNTUNED and run["model"] == model:
            for evaluation in run["evaluations"]:
                file = folder.evaluation(run["id"], evaluation["id"])
                if evaluation["of"] == of and file.is_file():
                    return read_table(file)
    return None


def _untuned_losses(
    folder: Folder, plan: dict[str, Any], model: str, training: str
) -> NDArray[np.float64] | None:
    """Return the loss that training begins with, question by question, in nats ``[n]``."""
    table = _untuned_table(folder, plan, model, training)
    if table is None:
        return None
    sums = [np.array(x) for x in table["loglikelihood"].to_pylist()]
    tokens = [np.array(x) for x in table["tokens"].to_pylist()]
    if "value" in table.column_names:
        return np.array([-s[0] / t[0] for s, t in zip(sums, tokens, strict=True)])
    answers = table["answer"].to_numpy()
    if plan["recipes"][model]["loss"] == "answer":
        return np.array([-s[a] / t[a] for s, t, a in zip(sums, tokens, answers, strict=True)])
    score = "sum" if plan["scoring"]["form"] == "letter" else plan["scoring"]["score"]
    lengths = [np.array(x) for x in table["bytes"].to_pylist()]
    scores = option_scores(score, sums, tokens, lengths)
    return np.array([np.logaddexp.reduce(s) - s[a] for s, a in zip(scores, answers, strict=True)])


def _seen(training: pa.Table, right: list[str], same_set: bool) -> NDArray[np.bool_] | None:
    """Say which right answers also are right answers in training (None for held-out folds)."""
    if same_set:
        return None
    trained = {
        options[answer].casefold()
        for options, answer in zip(
            training["options"].to_pylist(), training["answer"].to_pylist(), strict=True
        )
    }
    return np.array([text.casefold() in trained for text in right])


def _categories(column: pa.ChunkedArray) -> list[str] | None:
    """Return the categories, "" for a question without one; None where no question has any."""
    if column.null_count == len(column):
        return None
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64] | None:
    if column.null_count or pa.types.is_null(column.type):
        return None
    values = np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)
    return None if np.isnan(values).any() else values


def _recipe_words(plan: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between models with the model's name, the rest once."""
    words: dict[str, Any] = {}
    recipes: dict[str, dict[str, Any]] = {
        model: {k: v for k, v in recipe.items() if k != "adapter"}
        | {f"adapter {k}": v for k, v in recipe["adapter"].items()}
        for model, recipe in plan["recipes"].items()
    }
    first = next(iter(recipes.values()))
    for key in first:
        values = {model: recipe[key] for model, recipe in recipes.items()}
        if len(set(map(str, values.values()))) == 1:
            words[key.replace("_", " ")] = first[key]
        else:
            words |= {f"{key.replace('_', ' ')} ({m})": v for m, v in values.items()}
    scoring = plan["scoring"]
    words["scoring"] = scoring["form"] + (
        f", {scoring['score']}" if scoring["form"] == "cloze" else ""
    )
    words["seeds"] = ", ".join(map(str, plan["seeds"]))
    return words


def _versions(
    folder: Folder, done: list[RunRecord], details: dict[str, RunRecord]
) -> dict[str, list[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    used = [detail["versions"] for detail in details.values()]
    for run in done:
        for evaluation in run["evaluations"]:
            file = folder.evaluation(run["id"], evaluation["id"])
            if file.is_file():
                used.append(json.loads(pq.read_schema(file).metadata[b"versions"]))
    for versions in used:
        for name, version in versions.items():
            found[name].add(version)
    for detail in details.values():
        found["Python"].add(detail["machine"]["python"])
        found["engine numerics"].add(str(detail["numerics"]))
    return {name: sorted(versions) for name, versions in found.items()}


def _machine(details: dict[str, RunRecord]) -> str:
    return "; ".join(
        sorted(
            {
                f"{d['machine'].get('gpu') or d['machine']['processor']}, "
                f"{d['recipe']['threads']} threads"
                for d in details.values()
            }
        )
    )


def _title(run: RunRecord) -> str:
    return run_title(run["model"], run["arm"], run["seed"], run["fold"])
