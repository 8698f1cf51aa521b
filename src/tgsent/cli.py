"""The commands: read the command line, print results and errors, return the exit code."""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tgsent.config import RunConfig
    from tgsent.data.dataset import Dataset
    from tgsent.data.splits import TrialSplits
    from tgsent.data.texts import Line
    from tgsent.records import Progress
    from tgsent.report.results import Results

from tgsent import __version__
from tgsent.errors import (
    ConfigError,
    ProcessLostError,
    StoppedError,
    TgsentError,
    UnavailableError,
)
from tgsent.files import to_json, write_atomic
from tgsent.report.formats import Format, render, render_table
from tgsent.terminal import message, printable
from tgsent.training import distributed, interrupts

app = typer.Typer(
    name="tgsent",
    rich_markup_mode=None,  # rich help takes as long to import as everything else
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
  tgsent run -m t5 -d reviews.csv --set data.sample_size=null
    your own texts: a CSV file with the columns text and label
  tgsent run -m gpt2 -m ./my-model --set training.epochs=2 --dry-run
    show the plan, with time and memory

\b
Exit codes:
  0 done; 1 a trial failed; 2 command, config or data are wrong;
  3 something needed cannot be reached;
  130 interrupted (the same command resumes)
"""

# fmt: off
Config = Annotated[str, Option(
    "-c", "--config", metavar="CONFIG",
    help="A YAML file, or a shipped config: smoke, default, article.")]
Models = Annotated[list[str] | None, Option(
    "-m", "--model", metavar="MODEL",
    help="gpt2, gpt-neo, t5, a Hub id, a folder with a model or a .gguf file; repeat for more."
    " Replaces the config's list.")]
Trials = Annotated[int | None, Option("-n", "--trials", metavar="N", help="Number of trials.")]
Data = Annotated[str | None, Option(
    "-d", "--data", metavar="DATA",
    help="A file of labelled texts, sentiment140 or sample: the same as --set data.path=DATA.")]
OutputDir = Annotated[str | None, Option(
    "-o", "--output", metavar="DIR", help="Folder of the run folders.")]
Overrides = Annotated[list[str] | None, Option(
    "--set", metavar="KEY=VALUE",
    help="Set any key of the config, for example training.epochs=3; repeat for more.")]
Only = Annotated[list[str] | None, Option(
    "--only", metavar="MODEL:TRIAL",
    help="Run this trial alone; other processes may run others in the same folder at the same"
    " time. Repeat for more.")]
Engine = Annotated[str | None, Option(
    "--engine", metavar="local|ray",
    help="Run trials here, one by one, or many at once on a Ray cluster.")]
DryRun = Annotated[bool, Option("--dry-run", help="Show the plan without training.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON document instead of the table.")]
AsJsonLines = Annotated[bool, Option("--json", help="Print JSON lines instead of CSV.")]
IsQuiet = Annotated[bool, Option("-q", "--quiet", help="No progress and no notes.")]
Fresh = Annotated[bool, Option(
    "--fresh", help="Start over; old results are moved aside, not deleted.")]
RunDir = Annotated[Path, Argument(metavar="RUN_DIR", help="A folder that a run wrote.")]
RunDirs = Annotated[list[Path], Argument(
    metavar="RUN_DIR...", help="Folders that runs wrote, such as runs/default.")]
Texts = Annotated[list[str] | None, Argument(metavar="[TEXT]...", help="Texts to classify.")]
TextFile = Annotated[typer.FileBinaryRead | None, Option(
    "--file", metavar="FILE|-",
    help="A file with a text on each line, or .csv, .tsv or .jsonl; - is standard input.")]
Column = Annotated[str | None, Option(
    "--column", metavar="NAME", help="Column of FILE with the texts (default: text).")]
KeptModel = Annotated[str | None, Option(
    "--model", metavar="NAME",
    help="Model to use, as named in the table (default: the best one kept).")]
KeptTrial = Annotated[int | None, Option(
    "--trial", metavar="K", help="Trial to use (default: the first one kept).")]
OutputFormat = Annotated[Format | None, Option(
    "--format", help="Output format (default: from the ending of FILE; without FILE, a table).")]
OutputFile = Annotated[Path | None, Option("-o", metavar="FILE", help="Write to a file.")]
Rebuild = Annotated[bool, Option(
    "--fresh", help="Rebuild the environment, even if it works.")]
Version = Annotated[bool, Option("--version", help="Show the version.")]
# fmt: on


@app.callback(epilog="Start with: tgsent run -c smoke", invoke_without_command=True)
def _tgsent(context: typer.Context, version: Version = False) -> None:
    """Fine-tune generative language models to classify your texts, and see how good they are."""
    if version:
        typer.echo(f"tgsent {__version__}")
        raise typer.Exit
    if distributed.world_size() > 1 and context.invoked_subcommand != "run":
        raise ConfigError(f"tgsent {context.invoked_subcommand or ''} is for one process")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(epilog=_EXAMPLES)
def run(
    config: Config = "default",
    model: Models = None,
    trials: Trials = None,
    data: Data = None,
    output: OutputDir = None,
    overrides: Overrides = None,
    only: Only = None,
    engine: Engine = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: IsQuiet = False,
    fresh: Fresh = False,
) -> None:
    """Fine-tune and score models on the same splits.

    Run the same command again to resume.
    """
    from tgsent.config import load

    if only and fresh:
        raise ConfigError("--only adds to a run folder, and --fresh starts one over: choose one")
    settings = load(
        config, models=model or (), trials=trials, data=data, output_dir=output, engine=engine,
        overrides=overrides or (),
    )  # fmt: skip
    progress = _progress(quiet=quiet)
    if distributed.world_size() > 1:
        _connect(settings, dry_run=dry_run)
    if not distributed.is_main():
        from tgsent.experiment.local_engine import follow

        follow(settings.engine)
        return
    with distributed.leading():
        from tgsent.data.splits import TrialSplits

        dataset = _dataset(settings, progress)
        splits = TrialSplits(dataset, settings)
        for note in () if quiet else dataset.notes(splits.summaries):
            _complain(note)
        if dry_run:
            _print_plan(settings, dataset, splits, as_json=as_json)
            return
        from tgsent.experiment import execute, sweep

        carry_out = sweep.run if settings.sweep else execute.run
        context = execute.RunContext(
            command=["tgsent", *sys.argv[1:]], progress=progress, fresh=fresh, only=only or ()
        )
        results = carry_out(settings, dataset, splits, context)
    _print_results(results, as_json=as_json, quiet=quiet, only=only or ())


def _dataset(settings: RunConfig, progress: Progress) -> Dataset:
    """Read the texts; where they are not available, report also the models that are not."""
    from tgsent.data.dataset import load_dataset

    try:
        return load_dataset(settings.data, progress)
    except UnavailableError:
        from tgsent.experiment.execute import missing_models

        for missing in missing_models(settings):
            _complain(str(missing))
        raise


@app.command()
def predict(
    run_dir: RunDir,
    texts: Texts = None,
    file: TextFile = None,
    column: Column = None,
    model: KeptModel = None,
    trial: KeptTrial = None,
    as_json: AsJsonLines = False,
    quiet: IsQuiet = False,
) -> None:
    """Classify new texts with a model that a run kept.

    Runs keep models as output.save_model says. Writes the line that a text is on, the text, its
    predicted label, what the model generated, and the probability of every label, in the order of
    the input. Lines that cannot be read are reported, and the rest is classified.
    """
    if bool(texts) == (file is not None):
        raise ConfigError("expected either texts or --file")
    if column is not None and file is None:
        raise ConfigError("--column: is for --file")
    from tgsent.data.texts import given, read
    from tgsent.runs import stored

    run = stored.read(run_dir)  # before standard input is waited for
    source = file.name.replace("<stdin>", "standard input") if file else "the command"
    lines = read(file, source, column) if file else given(texts or ())
    # an error about the whole file comes before the model is loaded
    lines = itertools.chain([*itertools.islice(lines, 1)], lines)
    progress = _progress(quiet=quiet)
    from tgsent.experiment.predict import load
    from tgsent.runs.formats import prediction_lines

    classifier = load(run, model, trial)
    progress.line(f"{classifier.spec.title}, kept in {run.paths[0]}")
    broken = 0

    def report_unreadable(line: Line) -> None:
        nonlocal broken
        broken += 1
        if broken <= 20:  # more would fill the screen
            _complain(f"{source}, line {line.number}: {line.problem}")

    answers = classifier.classify_lines(lines, report_unreadable, progress)
    for written in prediction_lines(answers, classifier.spec, as_json=as_json):
        sys.stdout.write(printable(written) if sys.stdout.isatty() else written)
    if (cut := classifier.encoder.truncated) and not quiet:
        _complain(f"texts truncated to training.max_tokens: {cut:,}")
    if broken:
        _complain(f"lines that could not be read, and have no answer: {broken:,}")
        raise typer.Exit(1)


@app.command()
def report(run_dirs: RunDirs, form: OutputFormat = None, output: OutputFile = None) -> None:
    """Show the results of a run, or of several side by side.

    Several runs must have tested the same texts. Works while a run is going on, and on a run of
    another machine.
    """
    from tgsent.report import results
    from tgsent.runs import stored

    form = form or (Format.of_file(output) if output else Format.table)
    run = stored.combine([stored.read(path) for path in run_dirs])
    found = results.of_runs(run)
    if run.left_out:
        _complain(f"left out: {', '.join(run.left_out)}")
    if run.manifest.finished is None and len(run.paths) == 1:
        done = sum(map(len, run.trials.values()))
        planned = len(run.settings.names) * run.settings.trials
        _complain(f"the run goes on or was stopped: {done} of {planned} trials are finished")
    to_terminal = output is None and sys.stdout.isatty()
    content = render(found, run, form, to_terminal=to_terminal)
    if output is not None:
        write_atomic(output, content)
    else:
        is_raw = to_terminal and form is not Format.table
        sys.stdout.write(printable(content) if is_raw else content)


@app.command()
def setup_simplet5(fresh: Rebuild = False) -> None:
    """Create the environment of the package SimpleT5.

    training.backend: simplet5 needs it, because the package needs an older transformers than
    tgsent. An existing environment is checked, and rebuilt if it is broken.
    """
    from tgsent.backends.simplet5.environment import set_up

    set_up(_complain, fresh=fresh)


def _connect(settings: RunConfig, *, dry_run: bool) -> None:
    """Wait for the other processes of this run; raise ConfigError for what they cannot do."""
    if dry_run:
        raise ConfigError("--dry-run is for one process: start it without the launcher")
    if settings.engine.kind == "ray":
        raise ConfigError("--engine ray starts processes itself: start one tgsent only")
    from tgsent.training.recipe import resolve_device

    distributed.connect(on_cpu=resolve_device(settings.training.device) == "cpu")


def _print_results(results: Results, *, as_json: bool, quiet: bool, only: Sequence[str]) -> None:
    """Print results and notes; exit with 1 where trials failed, those of `only` if any."""
    from tgsent.report.tables import notes

    to_terminal = sys.stdout.isatty()
    sys.stdout.write(
        to_json(results.to_json()) if as_json else render_table(results, to_terminal=to_terminal)
    )
    for note in () if quiet else notes(results):
        _complain(note)
    failures = [(row.model, failure) for row in results.models for failure in row.failed]
    if only:
        failures = [one for one in failures if f"{one[0]}:{one[1].trial}" in only]
    for name, failure in failures:
        _complain(f"{name} trial {failure.trial} failed: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def _print_plan(
    settings: RunConfig, dataset: Dataset, splits: TrialSplits, *, as_json: bool
) -> None:
    from tgsent.experiment.plan import make_plan, to_text

    plan, missing = make_plan(settings, dataset, splits)
    sys.stdout.write(to_json(plan.to_json()) if as_json else printable(to_text(plan)))
    for error in missing:
        _complain(str(error))
    if missing:
        raise typer.Exit(missing[0].exit_code)


def _progress(*, quiet: bool) -> Progress:
    """Return the progress display on stderr; silence the libraries, unless variables are set."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    from rich.console import Console

    from tgsent.progress import Quiet, Shown

    return Quiet() if quiet else Shown(Console(stderr=True))


def _complain(text: str) -> None:
    who = "tgsent" if distributed.is_main() else f"tgsent, process {distributed.rank()}"
    typer.echo(f"{who}: {message(text)}", err=True)


def main() -> None:
    """Run the command line and exit with the code that the documentation promises."""
    with interrupts.handled():
        code = _run_app()
    is_fresh_run = "run" in sys.argv[1:2] and "--fresh" in sys.argv and "--dry-run" not in sys.argv
    if code == StoppedError.exit_code and distributed.is_main() and is_fresh_run:
        _complain("to resume, leave out --fresh if the old results have been moved aside")
    sys.exit(code)


def _run_app() -> int:
    try:
        code = int(app(prog_name="tgsent", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        code = StoppedError.exit_code
    except Exception as error:  # noqa: BLE001  reported without a traceback
        return _report(error)
    # Typer may already have turned Ctrl-C into the exit code
    if code == StoppedError.exit_code and distributed.is_main():
        is_run = "run" in sys.argv[1:2]  # no other command keeps anything
        _complain(f"interrupted{f'; {interrupts.RESUME}' if is_run else ''}")
    return code


def _report(error: Exception) -> int:
    """Report an error in a few lines; return its exit code."""
    if os.environ.get("TGSENT_DEBUG") == "1":
        typer.echo(message(traceback.format_exc()), err=True)
    if isinstance(error, typer.TyperException):  # of the command line itself
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "tgsent"
        _complain(f"{error.format_message()} (see {command} --help)")
    elif isinstance(error, OSError):  # of the output: errors of a run's files say more
        _complain(f"{error.filename or 'the output'}: {error.strerror}")
    elif not isinstance(error, TgsentError):
        _complain(
            f"unexpected {type(error).__name__}: {error}\n"
            "this is a bug in tgsent: set TGSENT_DEBUG=1 for a traceback"
        )
    elif not _reported_by_another(error):
        _complain(str(error))
    return int(getattr(error, "exit_code", TgsentError.exit_code))


def _reported_by_another(error: TgsentError) -> bool:
    """Check whether another of several processes reports the same."""
    if isinstance(error, ProcessLostError):
        return distributed.rank() > 1
    return not distributed.is_main() and isinstance(error, ConfigError | StoppedError)
