"""The command line: parses, calls, prints. Bad input ends in one message and exit status 2."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from lessonplan.errors import InputError
from lessonplan.orders import STRATEGIES

# What a command needs beyond the orders is imported in the command: `--help` must not wait for
# torch.

app = typer.Typer(
    help="In what order should a model see its fine-tuning data, and does the order really help?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Built-in name, preset, hub id, or file.")
]
StrategyOption = Annotated[
    str, typer.Option("--strategy", "-s", help=f"One of: {', '.join(STRATEGIES)}.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the order and of the training.")]
SplitOption = Annotated[str | None, typer.Option(help="Part of the data, such as train or test.")]
BadRowsOption = Annotated[str, typer.Option(help="error, or drop rows that cannot be used.")]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="ours=theirs for question, options, answer, id, category or difficulty; several "
        "option columns as options=a,b,c. May be given several times.",
    ),
]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Preset, folder, .gguf or hub id.")]
ScoringOption = Annotated[str, typer.Option(help="cloze or letter.")]
ScoreOption = Annotated[str, typer.Option(help="sum, per_token, per_byte or unconditional.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value changes a setting; may be given several times."),
]
LabelOut = Annotated[
    Path, typer.Option("--out", "-o", help="Label table (.parquet, .jsonl, .csv).")
]
TrustOption = Annotated[bool, typer.Option(help="Run code that lies beside a model's weights.")]


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file (YAML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The study's folder.")],
    settings: SetOption = None,
) -> None:
    """Run what a study lacks, then write its report. Stop and start it as you like."""
    from lessonplan.progress import StudyProgress
    from lessonplan.study import load_study, run_study

    configured = load_study(file, settings or [])
    with StudyProgress() as watch:
        run_study(configured, out, watch)
    _report(out)
    if watch.failures:
        _say(f"{len(watch.failures)} runs failed; starting the study again tries them again.")
        raise typer.Exit(1)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")],
) -> None:
    """Say what a study has done and what it lacks."""
    from lessonplan.study.status import status_table

    _print(status_table(folder))


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
    baseline: Annotated[
        str, typer.Option(help="The arm that gains are measured against.")
    ] = "random",
) -> None:
    """Compare results made anywhere: the same statistics and report as for a study."""
    from lessonplan.report import write_report
    from lessonplan.statistics import compare as compare_tables

    comparison = compare_tables(files, baseline=baseline)
    _print(comparison)
    if out is not None:
        _say(f"report: {write_report(comparison.record, out)}")


@app.command()
def order(
    data: Data,
    strategy: StrategyOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write (.jsonl, .csv, .parquet).")
    ],
    category: Annotated[str | None, typer.Option(help="Column with the category.")] = None,
    difficulty: Annotated[str | None, typer.Option(help="Column with the difficulty.")] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            help="A label table, joined by id (see `lessonplan label`), for labels that DATA has "
            "not itself. May be given several times."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--id", help="Column of DATA with the ids in --labels; by default id."),
    ] = None,
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
) -> None:
    """Put the rows of a table (any columns, all kept) in a strategy's order."""
    from lessonplan.data import (
        count_rows,
        load_questions,
        read_columns,
        write_ordered,
        write_table,
    )
    from lessonplan.data.tables import missing_column
    from lessonplan.orders import order as make_order

    # A file is any table; a named data set is questions, with their own labels.
    if Path(data).is_file() and split is not None:
        raise InputError(f"{data} is one file and has no splits; leave out --split.")
    questions = None if Path(data).exists() else load_questions(data, split=split)
    found: dict[str, Any] = {}
    for kind, column in (("category", category), ("difficulty", difficulty)):
        joined = _joined_label(data, questions, labels or [], kind, column, key)
        if joined is not None:
            found[kind] = joined
        elif questions is not None:
            name = column or kind
            if name not in questions.column_names:
                raise InputError(missing_column(data, name, questions.column_names))
            found[kind] = questions[name][:]
        elif column is not None:
            found[kind] = read_columns(data, [column])[column]
    permutation = make_order(
        strategy,
        count_rows(data) if questions is None else len(questions),
        seed=seed,
        blocks="band" if blocks == "band" else _integer("--blocks", blocks),
        bands=None if bands is None else _bands(bands),
        category_order=category_order.split(",") if "," in category_order else category_order,
        hardest_first=hardest_first,
        epochs=epochs,
        each=each,  # type: ignore[arg-type]
        repeat=repeat,
        **found,
    )
    if questions is None:
        write_ordered(data, out, permutation)
    else:
        write_table(questions.select(permutation), out)
    _say(f"{len(permutation)} rows in {strategy} order: {out}")


@app.command()
def train(
    data: Data,
    strategy: StrategyOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter.")],
    model: ModelOption = "smollm2-135m",
    seed: SeedOption = 0,
    split: SplitOption = None,
    column: ColumnsOption = None,
    bad_rows: BadRowsOption = "error",
    scoring: ScoringOption = "cloze",
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
    from lessonplan.data import load_questions
    from lessonplan.progress import step_bar
    from lessonplan.training.recipe import read_recipe, read_scoring

    recipe = read_recipe(settings or [])
    form = read_scoring(scoring, score)
    questions = load_questions(data, split=split, columns=_columns(column), bad_rows=bad_rows)
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
                scoring=form,
                trust_remote_code=trust_remote_code,
                processes=processes,
                on_step=on_step,
            )
    except TuningError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    first, last = log.losses[0], log.losses[-1]
    _say(f"loss {first:.3f} at the first step, {last:.3f} at the last; adapter: {out}")


@app.command()
def evaluate(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Predictions (.parquet, .jsonl, .csv).")],
    model: ModelOption = "smollm2-135m",
    adapter: Annotated[Path | None, typer.Option(help="A LoRA adapter's folder.")] = None,
    scoring: ScoringOption = "cloze",
    score: ScoreOption = "per_token",
    split: SplitOption = None,
    column: ColumnsOption = None,
    bad_rows: BadRowsOption = "error",
    settings: SetOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Score a model, with or without an adapter, and write its predictions."""
    import numpy as np
    from datasets import Dataset

    from lessonplan.data import load_questions, write_table
    from lessonplan.data.tables import EXTENSIONS, table_format
    from lessonplan.evaluation import accuracy, weighted_f1
    from lessonplan.evaluation.predict import evaluate as evaluate_model
    from lessonplan.training.recipe import read_recipe, read_scoring

    recipe = read_recipe(settings or [])
    form = read_scoring(scoring, score)
    if table_format(out) is None:  # said before the work, not after it
        raise InputError(f"{out}: the name must end in one of {', '.join(EXTENSIONS)}.")
    questions = load_questions(data, split=split, columns=_columns(column), bad_rows=bad_rows)
    table = evaluate_model(
        questions,
        model,
        adapter=adapter,
        scoring=form,
        recipe=recipe,
        trust_remote_code=trust_remote_code,
    )
    write_table(Dataset(table), out)
    answers, chosen = (np.asarray(table[name].to_numpy()) for name in ("answer", "chosen"))
    _say(
        f"{len(table)} questions: accuracy {accuracy(answers, chosen):.3f}, weighted F1 "
        f"{weighted_f1(answers, chosen):.3f}; predictions: {out}"
    )


label_app = typer.Typer(help="Label questions: how hard they are, and what they are about.")
app.add_typer(label_app, name="label")


@label_app.command("difficulty")
def label_difficulty(
    data: Data,
    out: LabelOut,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Preset, folder, .gguf, hub id, or NAME@http://host/v1 for a model behind an "
            "OpenAI-compatible server. Several are averaged.",
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="By models: probability (of a wrong option), loss, margin, entropy; by a "
            "fine-tuning: confidence, variability; or length.",
        ),
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="cloze or letter (over all rotations of the options).")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="A table of question by respondent, instead of models.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="For --answers: share (wrong), or 1pl or 2pl (item response).")
    ] = "share",
    key: Annotated[str | None, typer.Option(help="Column of --answers with the id.")] = None,
    share_right: Annotated[
        str | None, typer.Option(help="A column with the share of people who were right.")
    ] = None,
    api: Annotated[str, typer.Option(help="For a server: completions or chat.")] = "completions",
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable with the server's key.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    per_minute: Annotated[float | None, typer.Option(help="Most requests a minute.")] = None,
    attempts: Annotated[int, typer.Option(help="Tries of a request before giving up.")] = 6,
    top: Annotated[int, typer.Option(help="Log-probabilities asked for a token.")] = 20,
    score: ScoreOption = "per_token",
    split: SplitOption = None,
    column: ColumnsOption = None,
    bad_rows: BadRowsOption = "error",
    settings: SetOption = None,
) -> None:
    """Label how hard each question is, by models, people's answers or the text.

    The table has a row a question: id, difficulty (0 easiest, 1 hardest) and what it was made from.
    --set changes how a model is loaded and tuned: --set threads=4 --set max_tokens=1024.
    """
    from lessonplan.study.config import read_label_spec
    from lessonplan.training.recipe import read_recipe, read_scoring

    recipe = read_recipe(settings or [])
    scoring = read_scoring(form or "cloze", score)
    spec = read_label_spec(
        "difficulty",
        {
            "models": model or [],
            "measure": measure or ("probability" if model else None),
            "form": form,
            "answers": None if answers is None else str(answers),
            "method": method,
            "key": key,
            "share_right": share_right,
            "endpoint": {
                "api": api,
                "key_variable": key_variable,
                "concurrency": concurrency,
                "per_minute": per_minute,
                "attempts": attempts,
                "top": top,
            },
        },
    )
    keep = [share_right] if share_right else []
    questions = _label_questions(data, out, split, column, bad_rows, keep)
    label = _write_label("difficulty", spec, questions, data, out, recipe, scoring)
    _say(_label_summary(label, questions))


@label_app.command("category")
def label_category(
    data: Data,
    out: LabelOut,
    embedder: Annotated[
        str, typer.Option(help="minilm (offline), pubmedbert (the paper's), folder or hub id.")
    ] = "minilm",
    embed: Annotated[
        str, typer.Option(help="question_and_options, or question alone.")
    ] = "question_and_options",
    trials: Annotated[int, typer.Option(help="Sets of parameters to try.")] = 30,
    noise: Annotated[
        str, typer.Option(help="nearest: into the nearest cluster; own: a category of its own.")
    ] = "nearest",
    seed: Annotated[int, typer.Option(help="Of the search and of UMAP.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads for the embeddings.")] = 2,
    split: SplitOption = None,
    column: ColumnsOption = None,
    bad_rows: BadRowsOption = "error",
) -> None:
    """Label what each question is about, by clustering.

    The table has a row a question: id, category (named by its most typical words), the cluster's
    number, how sure its membership is, and a place on a map.
    """
    from lessonplan.study.config import read_label_spec
    from lessonplan.training.recipe import Scoring, read_recipe

    cluster = {
        "embedder": embedder,
        "embed": embed,
        "trials": trials,
        "noise": noise,
        "seed": seed,
    }
    spec = read_label_spec("category", {"cluster": cluster})
    questions = _label_questions(data, out, split, column, bad_rows, [])
    recipe = read_recipe([f"threads={threads}"])
    label = _write_label("category", spec, questions, data, out, recipe, Scoring())
    _say(_label_summary(label, questions))


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
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no permission, a full disk, a worker that was killed
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
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
    _say("\n".join([*found.sentences, *found.caveats]))
    _say(f"report: {page}")


def _label_questions(
    data: str,
    out: Path,
    split: str | None,
    column: list[str] | None,
    bad_rows: str,
    keep: list[str],
) -> Any:
    from lessonplan.data import load_questions
    from lessonplan.data.tables import EXTENSIONS, table_format

    if table_format(out) is None:  # said before the work, not after it
        raise InputError(f"{out}: the name must end in one of {', '.join(EXTENSIONS)}.")
    return load_questions(data, split=split, columns=_columns(column), bad_rows=bad_rows, keep=keep)


def _write_label(
    kind: Any, spec: Any, questions: Any, data: str, out: Path, recipe: Any, scoring: Any
) -> Any:
    from datasets import Dataset

    from lessonplan.data import write_table
    from lessonplan.labels.label import label_table
    from lessonplan.models.loading import cache_folder
    from lessonplan.progress import StudyProgress
    from lessonplan.study.labelling import make_label

    with StudyProgress() as watch:
        label = make_label(
            kind,
            spec.model_copy(update={"allow_uninformative": True}),
            questions,
            name=data,
            folder=cache_folder() / "labels",
            recipe=recipe,
            scoring=scoring,
            watch=watch,
        )
    write_table(Dataset(label_table(label, questions["id"][:])), out)
    for note in label.notes:
        _say(note)
    if lacking := int(label.missing.sum()):
        _say(f"{lacking} of {len(questions)} questions have no {kind}; their cells are empty.")
    if label.uninformative:
        _say("These labels say nothing of the questions; a study refuses them unless asked to.")
    _say(f"{len(questions)} questions, {kind} by {label.origin}: {out}")
    return label


def _label_summary(label: Any, questions: Any) -> str:
    """Say how a label agrees with the data's own, its models with each other, and what it leaks."""
    import numpy as np

    from lessonplan.evaluation import LabelSource
    from lessonplan.report.source_section import agreement_sentence
    from lessonplan.statistics.sources import agreements, leak

    answers = np.asarray(questions["answer"][:], dtype=np.int64)
    named = {"this label": label.values}
    for column, values in label.details.items():
        if ": " in column and not column.startswith(("right: ", "missing: ")):
            named[column.split(": ", 1)[1]] = np.asarray(values.to_numpy(zero_copy_only=False))
    own = questions[label.kind][:]
    if None not in own:
        named["of the data"] = np.array(own) if label.kind == "difficulty" else own
    sources = [
        LabelSource("", label.kind, name, label.origin, values, answers)
        for name, values in named.items()
    ]
    said = [agreement_sentence(agreement) for agreement in agreements(sources)]
    if label.kind == "difficulty":
        told = leak(sources[0])
        said.append(
            f"It tells {told.bits:.3f} of the {told.position_bits:.2f} bits of the right answer's "
            f"position (luck alone {told.luck:.3f}; p = {told.p:.2g})."
        )
    return "\n".join(said)


def _joined_label(
    data: str, questions: Any, tables: list[Path], kind: Any, column: str | None, key: str | None
) -> Any:
    """Return a label from the first table that has it; None where there is none, or DATA has it."""
    from lessonplan.data.tables import read_table
    from lessonplan.labels.label import Label, checked
    from lessonplan.labels.tables import read_labels

    if not tables:
        return None
    columns = read_table(data).columns if questions is None else questions[:]
    if column in columns:
        return None
    for table in tables:
        theirs = read_table(table).columns
        if (column or kind) not in theirs:
            continue
        ids = _ids(data, columns, key, list(theirs.get("id", [])))
        values, notes, uninformative = read_labels(ids, table, kind, column=column)
        for note in [*notes, *uninformative]:
            print(f"note: {note}", file=sys.stderr)
        return checked(Label(kind, values, f"table {table.name}"), data).values
    return None


def _ids(file: str, columns: dict[str, Any], key: str | None, theirs: list[Any]) -> list[str]:
    """Return what a label table calls the rows of a file: their ids, or 0-based row numbers."""
    from lessonplan.data.tables import missing_column, row_count
    from lessonplan.labels.tables import cell_text

    if key is not None and key not in columns:
        raise InputError(missing_column(file, key, columns))
    if key is not None or "id" in columns:
        return [cell_text(cell) for cell in columns[key or "id"]]
    rows = [str(row) for row in range(row_count(columns))]
    named = {cell_text(cell) for cell in theirs}
    for name, cells in columns.items():
        texts = [cell_text(cell) if isinstance(cell, (str, int, float)) else "" for cell in cells]
        if texts != rows and named and set(texts) == named:
            raise InputError(
                f"{file} has no column 'id', and the label table's ids are those of its column "
                f"{name!r}. Say so: --id {name}."
            )
    return rows


def _columns(pairs: list[str] | None) -> dict[str, Any] | None:
    if not pairs:
        return None
    columns: dict[str, Any] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals:
            raise InputError(f"--column takes ours=theirs, such as answer=label, not {pair!r}.")
        columns[ours] = theirs.split(",") if ours == "options" and "," in theirs else theirs
    return columns


def _bands(text: str) -> int | list[float]:
    if text.isdecimal():
        return int(text)
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--bands takes a number, or thresholds as 0.3,0.6, not {text!r}."
        ) from None


def _integer(option: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{option} takes a whole number or 'band', not {text!r}.")
    return int(text)


def _list(entries: dict[str, str]) -> None:
    width = max(map(len, entries))
    for name, summary in entries.items():
        print(f"{name:{width}}  {summary}")


def _say(text: str) -> None:
    print(text, flush=True)


def _print(thing: Any) -> None:
    from rich.console import Console

    Console().print(thing)


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning):
        print(f"note: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
