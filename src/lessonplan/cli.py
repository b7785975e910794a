"""The command line: parses, calls, prints. Bad input ends in one message and exit status 2."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lessonplan.cli_grid import grid
from lessonplan.cli_label import label_app
from lessonplan.cli_options import (
    AnswerBaseOption,
    BadRowsOption,
    ColumnsOption,
    Data,
    FormOption,
    LabelsOption,
    ModelOption,
    OverwriteOption,
    ScoreOption,
    SeedOption,
    SetOption,
    SplitOption,
    StrategyOption,
    TrustOption,
    check_out,
    check_report,
    console,
    note_parts,
    questions_of,
    read_columns_option,
    say,
)
from lessonplan.cli_plan import plan
from lessonplan.errors import NO_ROOM, InputError, counted, shown, without_secrets
from lessonplan.orders import STRATEGIES

# What a command needs beyond the orders is imported in the command: `--help` must not wait for
# torch.

COMMANDS = (
    *("study", "plan", "status", "report", "compare", "grid"),
    *("order", "label", "train", "evaluate"),
    *("strategies", "models", "datasets"),
)


class _AsUsed(TyperGroup):
    """Lists the commands in the order in which they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=COMMANDS.index)


app = typer.Typer(
    cls=_AsUsed,
    help="In what order should a model see its fine-tuning data, and does the order really help?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(label_app, name="label")
app.command()(plan)
app.command()(grid)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file (YAML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The study's folder.")],
    settings: SetOption = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Redo finished runs whose files are not as written."),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Do the runs on a Ray cluster; local starts one on this machine.",
        ),
    ] = None,
) -> None:
    """Run what a study lacks, then write its report. Stop and start it as you like."""
    from lessonplan.progress import StudyProgress
    from lessonplan.study import load_study, run_study

    configured = load_study(file, settings or [])
    kept = out / "study.yaml"
    if os.path.exists(kept) and kept.samefile(file):
        raise InputError(
            f"{file} would be written over: a study's folder keeps its settings under this name. "
            "Give another folder with -o, or a copy of the file that lies elsewhere."
        )
    with StudyProgress() as watch:
        run_study(configured, out, watch, repair=repair, ray=ray)
    _report(out)
    if watch.failures:
        failed = counted(len(watch.failures), "run")
        say(f"{failed} failed; starting the study again tries what failed again.")
        raise typer.Exit(1)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")],
) -> None:
    """Say what a study has done and what it lacks."""
    from lessonplan.study.status import status_table

    table, others = status_table(folder)
    _print(table)
    for sentence in others:
        say(sentence)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")],
) -> None:
    """Write the report of a study, finished or not."""
    _report(folder)


@app.command()
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES", help="Tables with columns id, arm, seed, correct or value."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for a report.")] = None,
    overwrite: OverwriteOption = False,
    baseline: Annotated[
        str, typer.Option(help="The arm that gains are measured against.")
    ] = "random",
) -> None:
    """Compare results made anywhere: the same statistics and report as for a study."""
    from lessonplan.report import write_report
    from lessonplan.statistics import compare as compare_tables

    check_report(out, *files, overwrite=overwrite)
    comparison = compare_tables(files, baseline=baseline)
    _print(comparison)
    if out is not None:
        say(f"report: {write_report(comparison.record, out)}")


@app.command()
def order(
    data: Data,
    strategy: StrategyOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write (.jsonl, .csv, .parquet).")
    ],
    overwrite: OverwriteOption = False,
    column: ColumnsOption = None,
    labels: LabelsOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
    blocks: Annotated[str, typer.Option(help="Rounds of interleaving, or band.")] = "3",
    bands: Annotated[
        str | None, typer.Option(help="Difficulty bands: a number, or thresholds as 0.3,0.6.")
    ] = None,
    category_order: Annotated[
        str, typer.Option(help="drawn, alphabetical, size, difficulty, or all names as a,b,c.")
    ] = "drawn",
    hardest_first: Annotated[
        bool, typer.Option("--hardest-first", help="From hard to easy.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 1,
    each: Annotated[str, typer.Option(help="same or anew: the order of each pass.")] = "same",
    repeat: Annotated[int, typer.Option(help="Times that each group is shown in a row.")] = 1,
    split: SplitOption = None,
    answer_base: AnswerBaseOption = None,
    bad_rows: BadRowsOption = "error",
    trainer: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="axolotl, llamafactory, ms-swift or trl: print the settings with which it keeps "
            "the order.",
        ),
    ] = None,
) -> None:
    """Put the rows of a table (any columns, all kept) in a strategy's order.

    Of a file only the category and the difficulty that the strategy uses are read (and with
    --labels the id): columns of these names, or as --column says. --split, --answer-base and
    --bad-rows are for questions that have a name or lie on the hub.
    """
    from lessonplan.data import count_rows, write_ordered, write_table
    from lessonplan.data.streams import first_rows
    from lessonplan.integrations.settings import trainer_settings
    from lessonplan.orders import Unlabelled, check_settings, labels_used
    from lessonplan.orders import order as make_order
    from lessonplan.progress import rows_bar

    if trainer is not None:
        trainer_settings(trainer, out, [])  # said before the work, not after it
    settings: dict[str, Any] = {
        "blocks": "band" if blocks == "band" else _integer("--blocks", blocks),
        "category_order": category_order.split(",") if "," in category_order else category_order,
    }
    used = labels_used(strategy, **settings)
    settings |= {"bands": None if bands is None else _bands(bands), "hardest_first": hardest_first}
    check_settings(strategy, **settings)
    check_out(out, data, *(labels or []), overwrite=overwrite)
    columns = read_columns_option(column) or {}
    # A file is any table; a named data set is questions, with their own labels.
    questions = None
    if not Path(data).exists():
        questions = questions_of(data, split, column, answer_base, bad_rows)
    elif split is not None:
        raise InputError(f"{data} is one file and has no splits; leave out --split.")
    elif answer_base is not None or bad_rows != "error":
        raise InputError(
            f"{data} is put in order as it stands, answers and all rows alike; leave out "
            f"{'--bad-rows' if answer_base is None else '--answer-base'}."
        )
    found: dict[str, Any] = {}
    if labels:
        ids = _ids(data, columns, labels) if questions is None else questions["id"][:]
        found = _table_labels(labels, strategy, used, ids, data, columns)
    with rows_bar() as phase:
        if questions is None:
            on_rows = phase("reading labels")
            found |= _own_labels(data, columns, used, found, bool(labels), on_rows)
        else:
            found |= {kind: questions[kind][:] for kind in used if kind not in found}
        if found:
            n = len(next(iter(found.values())))
        else:
            n = count_rows(data) if questions is None else len(questions)
        if n == 0:
            raise InputError(f"{data} holds no rows to put in order.")
        try:
            permutation = make_order(
                strategy,
                n,
                seed=seed,
                epochs=epochs,
                each=each,  # type: ignore[arg-type]
                repeat=repeat,
                **settings,
                **found,
            )
        except Unlabelled as error:
            if questions is None:
                place = _place(data, error.row)
            else:
                place = f"question {questions['id'][error.row]!r}"
            raise InputError(f"{data}: {error.at(place)}") from None
        if questions is None:
            on_rows = phase("putting rows in order", n + len(permutation))
            write_ordered(data, out, permutation, on_rows=on_rows)
        else:
            write_table(questions.select(permutation), out)
    note_parts(data, split)
    say(f"{len(permutation)} rows in {strategy} order: {out}")
    if trainer is not None:
        say(trainer_settings(trainer, out, first_rows(out, 1), epochs))


@app.command()
def train(
    data: Data,
    strategy: StrategyOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter.")],
    model: ModelOption = "smollm2-135m",
    seed: SeedOption = 0,
    split: SplitOption = None,
    column: ColumnsOption = None,
    labels: LabelsOption = None,
    answer_base: AnswerBaseOption = None,
    bad_rows: BadRowsOption = "error",
    form: FormOption = "cloze",
    score: ScoreOption = "per_token",
    processes: Annotated[
        int | None, typer.Option(help="With --set trainer=trl: processes to start, one a GPU.")
    ] = None,
    settings: SetOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Fine-tune a model in a strategy's order and save the adapter (PEFT format).

    --set changes the recipe: --set learning_rate=1e-3 --set adapter.layers=8.
    """
    from lessonplan.progress import step_bar
    from lessonplan.training.recipe import read_recipe, read_scoring

    recipe = read_recipe(settings or [])
    scoring = read_scoring(form, score)
    if score != "per_token" and recipe.loss != "choice":
        raise InputError(
            f"--score {score} has no effect on a training whose loss is of the answer alone. Leave "
            "it out, or say --set loss=choice."
        )
    check_out(out, data, *(labels or []), holds="adapter")
    questions = questions_of(data, split, column, answer_base, bad_rows)
    note_parts(data, split)
    if labels:
        columns = read_columns_option(column) or {}
        questions = _with_labels(questions, data, labels, strategy, columns)
    from lessonplan.orders import Unlabelled
    from lessonplan.training.train import train as train_model
    from lessonplan.training.tune import TuningError

    try:
        with step_bar(len(questions) * recipe.epochs) as on_step:
            log = train_model(
                questions,
                model,
                strategy,
                out,
                seed=seed,
                recipe=recipe,
                scoring=scoring,
                trust_remote_code=trust_remote_code,
                processes=processes,
                on_step=on_step,
            )
    except Unlabelled as error:
        raise InputError(f"{data}: {error}") from None
    except TuningError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    first, last = log.losses[0], log.losses[-1]
    say(f"loss {first:.3f} at the first step, {last:.3f} at the last; adapter: {out}")


@app.command()
def evaluate(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Predictions (.parquet, .jsonl, .csv).")],
    overwrite: OverwriteOption = False,
    model: ModelOption = "smollm2-135m",
    adapter: Annotated[Path | None, typer.Option(help="A LoRA adapter's folder.")] = None,
    form: FormOption = "cloze",
    score: ScoreOption = "per_token",
    split: SplitOption = None,
    column: ColumnsOption = None,
    answer_base: AnswerBaseOption = None,
    bad_rows: BadRowsOption = "error",
    settings: SetOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Score a model, with or without an adapter, and write its predictions."""
    import numpy as np
    from datasets import Dataset

    from lessonplan.data import write_table
    from lessonplan.data.features import are_completions
    from lessonplan.evaluation import accuracy, weighted_f1
    from lessonplan.evaluation.predict import evaluate as evaluate_model
    from lessonplan.evaluation.scores import LIKELIHOODS
    from lessonplan.training.recipe import LOADING, read_recipe, read_scoring

    recipe = read_recipe(settings or [], LOADING)
    scoring = read_scoring(form, score)
    check_out(out, data, model, adapter, overwrite=overwrite)
    questions = questions_of(data, split, column, answer_base, bad_rows)
    note_parts(data, split)
    table = evaluate_model(
        questions,
        model,
        adapter=adapter,
        scoring=scoring,
        recipe=recipe,
        trust_remote_code=trust_remote_code,
    )
    write_table(Dataset(table), out)
    if are_completions(questions):
        told = f"{LIKELIHOODS[scoring.score]} {np.mean(table['value'].to_numpy()):.4f}"
        say(f"{counted(len(table), 'completion')}: {told}; predictions: {out}")
        return
    answers, chosen = (np.asarray(table[name].to_numpy()) for name in ("answer", "chosen"))
    say(
        f"{counted(len(table), 'question')}: accuracy {accuracy(answers, chosen):.3f}, weighted F1 "
        f"{weighted_f1(answers, chosen):.3f}; predictions: {out}"
    )


@app.command()
def strategies() -> None:
    """List the strategies."""
    _list({name: strategy.summary for name, strategy in STRATEGIES.items()})


@app.command()
def models() -> None:
    """List the models that have names."""
    from lessonplan.models import PRESETS

    _list({name: preset.summary for name, preset in PRESETS.items()})


@app.command()
def datasets() -> None:
    """List the data that have names."""
    from lessonplan.data import DATASETS

    _list(DATASETS)


def main() -> None:
    """Run the command line; every documented error becomes one message and a status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):  # not every terminal has every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no permission, a full disk, a worker that was killed
        where = f"{error.filename}: " if error.filename else ""
        print(without_secrets(f"error: {where}{error.strerror or error}"), file=sys.stderr)
        if error.errno in NO_ROOM:
            print("Make room and start again; what is finished is kept.", file=sys.stderr)
        sys.exit(1 if error.errno in NO_ROOM or isinstance(error, ChildProcessError) else 2)
    except SystemExit as end:
        if end.code == 130:  # what Typer makes of Ctrl-C
            print(
                "\nstopped; what was finished is kept, and the same command goes on.",
                file=sys.stderr,
            )
        raise


def _report(folder: Path) -> None:
    from lessonplan.report import write_report
    from lessonplan.statistics import analyse, verdict
    from lessonplan.study import read_record
    from lessonplan.study.store import open_folder

    record = read_record(folder)
    page = write_report(record, open_folder(folder).report)
    found = verdict(record, analyse(record))
    say("\n".join([*found.sentences, *found.caveats]))
    say(f"report: {page}")


def _with_labels(
    questions: Any, data: str, tables: list[Path], strategy: str, columns: dict[str, Any]
) -> Any:
    """Return a question `Dataset` with the labels that a strategy uses from tables of labels.

    Raises:
        InputError: see `_table_labels`.
    """
    from lessonplan.data.features import question_features
    from lessonplan.orders import labels_used

    used = labels_used(strategy)
    found = _table_labels(tables, strategy, used, questions["id"][:], data, columns)
    for kind, values in found.items():
        feature = question_features()[kind]
        questions = questions.remove_columns(kind).add_column(kind, values, feature=feature)
    return questions


def _table_labels(
    tables: list[Path],
    strategy: str,
    used: Sequence[Any],
    ids: list[str],
    data: str,
    columns: dict[str, Any],
) -> dict[str, Any]:
    """Return the labels that --labels gives, for the rows of DATA, which have these ids.

    Args:
        used: the labels that the strategy uses; others are not looked at.
        columns: what --column says.

    Raises:
        InputError: a table without such a label, a label in two places, and see `read_labels`.
    """
    from lessonplan.data.streams import first_rows
    from lessonplan.labels.label import Label, checked
    from lessonplan.labels.tables import read_labels

    if not used:
        raise InputError(f"--labels has no effect: {strategy} uses no label. Leave it out.")
    found: dict[str, Any] = {}
    giver: dict[str, str] = {kind: f"--column {kind}={columns[kind]}" for kind in columns}
    for table in tables:
        names = first_rows(table)
        given = [kind for kind in used if kind in names]
        if not given:
            raise InputError(
                f"{table} has no column {' or '.join(map(repr, used))}, of which {strategy} makes "
                f"its order; its columns are: {', '.join(names) or 'none'}. Rename the column that "
                "is meant, or give another table."
            )
        for kind in given:
            if kind in giver:
                raise InputError(
                    f"{giver[kind]} and {table} both give a {kind}. Leave out one of them."
                )
            giver[kind] = str(table)
            values, notes, uninformative = read_labels(ids, table, kind)
            for note in [*notes, *uninformative]:
                print(f"note: {note}", file=sys.stderr)
            found[kind] = checked(Label(kind, values, f"table {table.name}"), data).values
    return found


def _own_labels(
    file: str,
    columns: dict[str, Any],
    used: Sequence[str],
    given: Collection[str],
    joined: bool,
    on_rows: Any,
) -> dict[str, Any]:
    """Return the labels that a strategy uses from a file's own columns.

    Args:
        columns: what --column says.
        given: the labels that tables give.
        joined: whether there are such tables.
    """
    from lessonplan.data import read_columns
    from lessonplan.data.streams import first_rows

    known = ("category", "difficulty", *(["id"] if joined else []))
    for ours in columns:
        if ours not in known:
            without = " without --labels" if ours == "id" else ""
            raise InputError(
                f"--column {ours}=... has no effect{without}: of a file an order reads "
                f"{' and '.join(known[:2])}, and id to join --labels. Leave it out."
            )
    named = {kind: columns[kind] for kind in known[:2] if kind in columns}
    lacking = [kind for kind in used if kind not in given and kind not in named]
    names = first_rows(file) if lacking else {}
    named |= {kind: kind for kind in lacking if kind in names}
    if not named:
        return {}
    cells = read_columns(file, list(set(named.values())), on_rows=on_rows)
    own = {kind: cells[name] for kind, name in named.items() if kind in used}
    if "difficulty" in own:
        _check_numbers(file, named["difficulty"], own["difficulty"])
    return own


def _check_numbers(file: str, column: str, cells: Any) -> None:
    for row, cell in enumerate(cells if cells.dtype == object else []):
        try:
            float(cell or "nan")
        except ValueError:
            raise InputError(
                f"{file}, {_place(file, row)}, column {column!r}: expected a difficulty as a "
                f"number; found {shown(cell)}."
            ) from None


def _place(file: str, row: int) -> str:
    """Return what messages call a 0-based row of a file."""
    from lessonplan.data.tables import read_table

    return read_table(file, keep=()).place(row)


def _ids(file: str, columns: dict[str, Any], tables: list[Path]) -> list[str]:
    """Return what label tables call the rows of a file: their ids, or 0-based row numbers."""
    from lessonplan.data import count_rows
    from lessonplan.data.streams import first_rows
    from lessonplan.data.tables import cell_text, missing_column, read_table

    key = columns.get("id", "id")
    own = read_table(file, [key]).columns
    if key in own:
        return [cell_text(cell) for cell in own[key]]
    first = first_rows(file)
    if "id" in columns:
        raise InputError(missing_column(file, key, first))
    rows = [str(row) for row in range(count_rows(file))]
    for table in tables:
        named = {cell_text(cell) for cell in first_rows(table).get("id", [])}
        for name, cells in first.items():
            texts = [cell_text(c) if isinstance(c, str | int | float) else "" for c in cells]
            if texts != rows[: len(texts)] and named and set(texts) == named:
                raise InputError(
                    f"{file} has no column 'id', and the ids of {table} are those of its column "
                    f"{name!r}. Say so: --column id={name}."
                )
    return rows


def _bands(text: str) -> int | list[float]:
    try:
        return int(text) if text.isdecimal() else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--bands takes a number, or thresholds as 0.3,0.6, not {text!r}."
        ) from None


def _integer(option: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 4000:
        raise InputError(f"{option} takes a whole number or 'band', not {text!r}.")
    return int(text)


def _list(entries: dict[str, str]) -> None:
    width = max(map(len, entries))
    for name, summary in entries.items():
        print(f"{name:{width}}  {summary}")


def _print(thing: Any) -> None:
    console().print(thing)


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning):
        print(f"note: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
