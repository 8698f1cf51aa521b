"""The command line: the only place that prints and exits."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import sys
import traceback
from collections import deque
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tgsent.config import RunConfig
    from tgsent.data.dataset import Dataset
    from tgsent.data.splits import TrialSplits
    from tgsent.data.texts import Line
    from tgsent.records import Progress
    from tgsent.report.results import Results
    from tgsent.runs.stored import StoredRun

from tgsent import __version__
from tgsent.errors import (
    ConfigError,
    DataError,
    ProcessLostError,
    StoppedError,
    TgsentError,
    UnavailableError,
)
from tgsent.terminal import message, printable
from tgsent.training import distributed, interrupts

app = typer.Typer(
    name="tgsent",
    help="Fine-tune generative language models to classify your texts, and see how good they are.",
    rich_markup_mode=None,  # what draws the other kind of help takes as long to import as the rest
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# \b keeps the lines of its paragraph as they are
_EXAMPLES = """
\b
Examples:
  tgsent run -c smoke
    three tiny models on made-up tweets: no download, a minute or so
  tgsent run --model gpt2 --trials 3
    fine-tune GPT-2 on Sentiment140, three trials
  tgsent run -m t5 --set data.path=reviews.csv --set data.sample_size=null
    your own texts: a CSV file with the columns text and label
  tgsent run -m gpt2 -m ./my-model --set training.epochs=2 --dry-run
    what would be done, and how much work it is

\b
Exit codes:
  0 done; 1 a trial failed; 2 command, config or data are wrong;
  3 something needed cannot be reached;
  130 interrupted (the same command resumes)
"""


_BROKEN_SHOWN = 20


class Format(StrEnum):
    """How `tgsent report` writes."""

    table = "table"
    markdown = "markdown"
    json = "json"
    csv = "csv"
    html = "html"


_ENDINGS = {
    ".md": Format.markdown, ".json": Format.json, ".csv": Format.csv, ".html": Format.html,
    ".txt": Format.table,
}  # fmt: skip
_LISTED = " ".join(_ENDINGS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tgsent {__version__}")
        raise typer.Exit


@app.callback(epilog="Start with: tgsent run -c smoke", invoke_without_command=True)
def _tgsent(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Fine-tune generative language models to classify your texts, and see how good they are."""
    del version  # it has been seen to before
    if distributed.world_size() > 1 and context.invoked_subcommand != "run":
        raise ConfigError(f"tgsent {context.invoked_subcommand or ''} is for one process")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(
    name="run", epilog=_EXAMPLES, short_help="Fine-tune and score models on the same splits."
)
def run(
    config: Annotated[
        str,
        typer.Option(
            "-c",
            "--config",
            metavar="CONFIG",
            help="A YAML file, or a shipped config: smoke, default, article.",
        ),
    ] = "default",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            help="gpt2, gpt-neo, t5, a Hub id, a folder with a model or a .gguf file; repeat for"
            " more."
            " Replaces the config's list.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("-n", "--trials", metavar="N", help="Number of trials.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the run folders."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key of the config, for example training.epochs=3; repeat for more.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="MODEL:TRIAL",
            help="Run this trial alone; other processes may run others in the same folder at the"
            " same time. Repeat for more.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="local|ray",
            help="Run trials here, one by one, or many at once on a Ray cluster.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of the table.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes.")] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start over; old results are moved aside, not deleted."),
    ] = False,
) -> None:
    """Fine-tune and score the models of a config on the same splits.

    The same command again goes on where the last one stopped.
    """
    from tgsent.config import load

    if only and fresh:
        raise ConfigError("--only adds to a run folder, and --fresh starts one over: choose one")
    settings = load(
        config,
        models=model or (),
        trials=trials,
        output_dir=output,
        engine=engine,
        overrides=overrides or (),
    )
    _quiet_libraries()
    from rich.console import Console

    from tgsent.progress import Quiet, make_progress

    if distributed.world_size() > 1:
        _meet(settings, dry_run=dry_run)
    if not distributed.is_main():
        from tgsent.experiment.execute import follow

        follow(settings, Quiet())
        return

    progress = make_progress(Console(stderr=True), quiet=quiet)
    with distributed.leading():
        dataset, splits = _texts(settings, progress, quiet=quiet)
        if dry_run:
            _print_plan(settings, dataset, splits, as_json=as_json)
            return

        from tgsent.experiment import execute, sweep

        carry_out = sweep.run if settings.sweep else execute.run
        results = carry_out(
            settings,
            dataset,
            splits,
            fresh=fresh,
            command=["tgsent", *sys.argv[1:]],
            progress=progress,
            only=only or (),
        )
    _print_results(results, as_json=as_json, quiet=quiet, only=only or ())


def _texts(settings: RunConfig, progress: Progress, *, quiet: bool) -> tuple[Dataset, TrialSplits]:
    """Read the texts and split them, and tell what a user should know of them."""
    from tgsent.data.dataset import load_dataset
    from tgsent.data.splits import TrialSplits

    try:
        dataset = load_dataset(settings.data, progress)
    except UnavailableError as error:
        for missing in _missing_models(settings):
            _complain(missing)
        raise error from None
    splits = TrialSplits(dataset, settings)
    for note in () if quiet else dataset.notes(splits.summaries):
        _complain(note)
    return dataset, splits


@app.command(name="predict", short_help="Classify new texts with a model that a run kept.")
def predict(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that a run wrote.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to classify.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            metavar="FILE|-",
            help="A file with a text on each line, or .csv, .tsv or .jsonl; - is standard input.",
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="NAME", help="Column of FILE with the texts: text."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Row of the table; else the best one kept."),
    ] = None,
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="K", help="Trial; else the first one kept.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON lines instead of CSV.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes.")] = False,
) -> None:
    """Classify new texts with a model that a run kept (output.save_model).

    Writes the line that a text is on, the text, its predicted label, what the model generated, and
    the probability of every label, in the order of the input. A line that cannot be read
    is told, and the rest is classified.
    """
    if bool(texts) == (file is not None):
        raise ConfigError("give either texts or --file: what is to be classified?")
    from tgsent.data import texts as inputs
    from tgsent.runs import stored

    run = stored.read(run_dir)  # before anything is waited for
    with contextlib.ExitStack() as stack:
        if file is None:
            if column is not None:
                raise ConfigError("--column: is for --file")
            name, lines = "the command", inputs.given(texts or ())
        else:
            name = "standard input" if file == "-" else file
            lines = inputs.read(_opened(file, stack), name, column)
        first = next(lines, None)  # so that what is wrong with all of the file is told at once
        lines = itertools.chain([] if first is None else [first], lines)
        _predict(run, lines, name, model, trial, as_json=as_json, quiet=quiet)


def _opened(file: str, stack: contextlib.ExitStack) -> BinaryIO:
    if file == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(Path(file).open("rb"))
    except OSError as error:
        raise DataError(f"--file: {file}: {error.strerror}") from None


def _predict(
    run: StoredRun,
    lines: Iterator[Line],
    source: str,
    model: str | None,
    trial: int | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    _quiet_libraries()
    from rich.console import Console

    from tgsent.experiment import predict
    from tgsent.progress import make_progress
    from tgsent.runs.formats import prediction_lines

    classifier = predict.load(run, model, trial)
    progress = make_progress(Console(stderr=True), quiet=quiet)
    progress.line(f"{classifier.spec.title}, kept in {run.paths[0]}")
    broken, numbers = 0, deque[int]()

    def readable() -> Iterator[str]:
        nonlocal broken
        for line in lines:
            if not line.problem:
                numbers.append(line.number)
                yield line.text
                continue
            broken += 1
            if broken <= _BROKEN_SHOWN:
                _complain(f"{source}, line {line.number}: {line.problem}")

    answers = ((numbers.popleft(), p) for p in classifier.classify(readable(), progress))
    for written in prediction_lines(answers, classifier.spec, as_json=as_json):
        sys.stdout.write(printable(written) if sys.stdout.isatty() else written)
    if (cut := classifier.encoder.truncated) and not quiet:
        _complain(f"texts cut to training.max_tokens: {cut:,}")
    if broken:
        _complain(f"lines that could not be read, and have no answer: {broken:,}")
        raise typer.Exit(1)


@app.command(name="report", short_help="Show the results of a run, or of several side by side.")
def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_DIR...", help="Folders that runs wrote, such as runs/default."),
    ],
    form: Annotated[
        Format | None,
        typer.Option(
            "--format", help="Of the output; else that of FILE's ending, and a table without FILE."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Write to a file.")
    ] = None,
) -> None:
    """Show the results of a run, or of several in one table where they tested the same texts.

    Works while a run is going on, and on a run of another machine.
    """
    from tgsent.report import results
    from tgsent.runs import stored

    if form is None and output is not None and output.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"-o {output}: name the format with --format, or by one of {_LISTED}")
    if form is None:
        form = _ENDINGS[output.suffix.lower()] if output else Format.table
    gc.disable()  # what is read stays to the end: there is nothing to be found
    run = stored.combine([stored.read(path) for path in run_dirs])
    found = results.of_runs(run)
    if run.left_out:
        _complain(f"left out: {', '.join(run.left_out)}")
    if run.manifest.finished is None and len(run.paths) == 1:
        done = sum(map(len, run.trials.values()))
        _complain(f"the run goes on or was stopped: {done} of {run.planned} trials are finished")
    if output is None:
        on_terminal = form is not Format.table and sys.stdout.isatty()
        content = _written(found, run, form, to_terminal=sys.stdout.isatty())
        sys.stdout.write(printable(content) if on_terminal else content)
    else:
        content = _written(found, run, form, to_terminal=False)
        from tgsent.files import write_atomic

        write_atomic(output, content)


@app.command(name="setup-simplet5", short_help="Make the environment of the package SimpleT5.")
def setup_simplet5(
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make it anew, even where it is there and works.")
    ] = False,
) -> None:
    """Make the environment that training.backend: simplet5 needs, once for all runs.

    The package SimpleT5 needs an older transformers than tgsent. Where the environment is there,
    it is checked, and mended if it is broken.
    """
    from tgsent.backends.simplet5.environment import set_up

    set_up(_complain, fresh=fresh)


def _meet(settings: RunConfig, *, dry_run: bool) -> None:
    """Wait for the other processes of this run; raises ConfigError for what they cannot do."""
    if dry_run:
        raise ConfigError("--dry-run is for one process: start it without the launcher")
    if settings.engine.kind == "ray":
        raise ConfigError("--engine ray starts processes itself: start one tgsent only")
    from tgsent.training.recipe import resolve_device

    distributed.connect(on_cpu=resolve_device(settings.training.device) == "cpu")


def _missing_models(settings: RunConfig) -> Iterator[str]:
    """Say which models cannot be had either, so that all that is missing is told at once."""
    from tgsent.modeling.hub import fetch

    for spec in settings.trial_specs(()):
        if spec.trial == 1 and spec.training.init != "tiny" and not spec.is_baseline:
            try:
                fetch(spec.model, weights=False)
            except UnavailableError as error:
                yield str(error)


def _written(found: Results, run: StoredRun, form: Format, *, to_terminal: bool) -> str:
    """Write results in one of the formats."""
    from tgsent.files import to_json
    from tgsent.report import pages
    from tgsent.report.tables import results_csv

    if form is Format.json:
        return to_json(found.to_json())
    if form is Format.csv:
        return results_csv(found, escape_formulas=run.escape_formulas)
    if form is Format.html:
        return pages.html(found, run)
    if form is Format.markdown:
        return pages.markdown_page(found, run)
    return _table(found, to_terminal=to_terminal)


def _table(results: Results, *, to_terminal: bool) -> str:
    """Write the table and the sentences under it; but for a terminal nothing is cut or coloured."""
    from rich.console import Console

    from tgsent.report.tables import results_table, sentences

    console = Console() if to_terminal else Console(width=250, file=io.StringIO())
    with console.capture() as captured:
        console.print(results_table(results))
        for sentence in sentences(results):
            console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)
    return captured.get()


def _print_results(results: Results, *, as_json: bool, quiet: bool, only: Sequence[str]) -> None:
    """Print the results, and what is to be said of them; exit with 1 where trials failed.

    With `only`, these are the trials that count.
    """
    from tgsent.files import to_json
    from tgsent.report.tables import notes

    sys.stdout.write(
        to_json(results.to_json()) if as_json else _table(results, to_terminal=sys.stdout.isatty())
    )
    for note in () if quiet else notes(results):
        _complain(note)
    failures = [
        (m.model, f)
        for m in results.models
        for f in m.failed
        if not only or f"{m.model}:{f.trial}" in only
    ]
    for name, failure in failures:
        _complain(f"{name} trial {failure.trial} failed: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def _print_plan(
    settings: RunConfig, dataset: Dataset, splits: TrialSplits, *, as_json: bool
) -> None:
    from tgsent.experiment.plan import make_plan, to_text
    from tgsent.files import to_json

    plan, missing = make_plan(settings, dataset, splits)
    sys.stdout.write(to_json(plan) if as_json else printable(to_text(plan, settings.to_yaml())))
    for error in missing:
        _complain(str(error))
    if missing:
        raise typer.Exit(missing[0].exit_code)


def _quiet_libraries() -> None:
    """Keep the libraries' own talk off the terminal, unless the user asked for it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported


def _complain(text: str) -> None:
    who = "tgsent" if distributed.is_main() else f"tgsent, process {distributed.rank()}"
    typer.echo(f"{who}: {message(text)}", err=True)


def _told_by_another(error: Exception) -> bool:
    """Tell whether another of several processes says the same."""
    if isinstance(error, ProcessLostError):
        return distributed.rank() > 1
    return not distributed.is_main() and isinstance(error, ConfigError | StoppedError)


def main() -> None:
    """Run the command line and exit with the code that the documentation promises."""
    with interrupts.handled():
        code = _run_app()
    sys.exit(code)


def _run_app() -> int:
    try:
        code = int(app(standalone_mode=False) or 0)
    except TgsentError as error:
        if os.environ.get("TGSENT_DEBUG") == "1":
            typer.echo(message(traceback.format_exc()), err=True)
        if not _told_by_another(error):
            _complain(str(error) + (_but_not_fresh() if isinstance(error, StoppedError) else ""))
        return error.exit_code
    except typer.TyperException as error:  # of the command line itself
        known = {command.name for command in app.registered_commands}
        command = "".join(f" {name}" for name in sys.argv[1:2] if name in known)
        _complain(f"{error.format_message()} (tgsent{command} --help shows the way)")
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = StoppedError.exit_code
    except OSError as error:  # of what is printed: files of a run say more
        _complain(f"{error.filename or 'the output'}: {error.strerror}")
        return TgsentError.exit_code
    except Exception as error:  # noqa: BLE001  told in one line, not as a traceback
        if os.environ.get("TGSENT_DEBUG") == "1":
            typer.echo(message(traceback.format_exc()), err=True)
        _complain(
            f"unexpected {type(error).__name__}: {error}\n"
            "this is a fault of tgsent: TGSENT_DEBUG=1 in the environment shows where"
        )
        return TgsentError.exit_code
    if (
        code == StoppedError.exit_code and distributed.is_main()
    ):  # into which Typer may have turned Ctrl-C already
        is_run = "run" in sys.argv[1:2]  # no other command keeps anything
        kept = f"; {interrupts.GOING_ON}{_but_not_fresh()}" if is_run else ""
        _complain(f"interrupted{kept}")
    return code


def _but_not_fresh() -> str:
    """Warn of a second start from nothing, where the same command would make one."""
    if "--fresh" not in sys.argv:
        return ""
    return " (without --fresh, if the old results have been moved aside)"
