"""The command line: parses, calls, prints. Bad input ends in one message and exit status 2."""

from __future__ import annotations

import io
import os
import sys
import warnings
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
    column_option,
    console,
    note_parts,
    questions_of,
    read_columns_option,
    say,
)
from lessonplan.cli_order import order, with_labels
from lessonplan.cli_plan import plan
from lessonplan.errors import NO_ROOM, InputError, counted, without_secrets
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
app.command()(order)


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
    column: Annotated[
        list[str] | None, column_option("id, arm, seed, correct, value, model or evaluation")
    ] = None,
) -> None:
    """Compare results made anywhere: the same statistics and report as for a study."""
    from lessonplan.report import write_report
    from lessonplan.statistics import compare as compare_tables

    check_report(out, *files, overwrite=overwrite)
    columns = read_columns_option(column)
    comparison = compare_tables(files, baseline=baseline, columns=columns)
    _print(comparison)
    if out is not None:
        say(f"report: {write_report(comparison.record, out)}")


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
        questions = with_labels(questions, data, labels, strategy, columns)
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
