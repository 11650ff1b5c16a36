"""The command line: `python -m trainer pretrain | finetune | evaluate | run | report | compare | predict | export`.

Each command is one stage over one folder (`--out`); `run` is all of them. Options are declared in `trainer.options`.
A user's error is one sentence on stderr and an exit code of `trainer.errors`; a traceback is always a defect of the
trainer.
"""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from trainer import __version__
from trainer.errors import ConfigError, DataError, TrainerError
from trainer.options import RunOptions

if TYPE_CHECKING:
    from trainer.images.data import ImageSet
    from trainer.run.session import RunTicket

# What shells report for a program ended by Ctrl-C.
_EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="trainer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain text: boxes leave half of 80 columns for the words.
    rich_markup_mode=None,
    help="Learn to classify images from few labels, each asked of the label service over HTTP.\n\n"
    "`run` does everything; the other commands are its stages. All of them keep their work in --out, "
    "show how long is left, can be interrupted, and go on with --resume.",
)


def _show_version(wanted: bool) -> None:
    """Print the version and end, as `--version` asks; do nothing without it."""
    if wanted:
        print(f"labelmeter-trainer {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Read the options that stand before a command. The program's help is the application's."""


class _Format(Enum):
    """What `predict` writes."""

    csv = "csv"
    json = "json"


Work = Callable[[RunOptions], None]


def _command(*names: str, required: str = "") -> Callable[[Work], Work]:
    """Make a command of a function: the options that it takes, and the one that flag or environment must give."""

    def register(work: Work) -> Work:
        def command(**flags: Any) -> None:  # noqa: ANN401 - each option has its own type
            _guard(_read_options(work.__name__, flags, required), work, begins=required != "out")

        # Typer makes the flags out of a function's signature.
        shown = {name: field.default for name, field in RunOptions.model_fields.items()}
        shown |= {"out": _default_out(work.__name__)} | ({required: "required"} if required else {})
        flags = [_flag(name, shown[name]) for name in names]
        command.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
        environment = "Each option is also an environment variable: TRAINER_ and its name, TRAINER_SEED for --seed."
        app.command(work.__name__, help=f"{work.__doc__}\n\n{environment}")(command)
        return work

    return register


def _flag(name: str, default: object) -> inspect.Parameter:
    """Declare an option's flag. A flag that is not given is None, so that the environment and the default count."""
    field = RunOptions.model_fields[name]
    note = "" if default in (None, False) else " (required)" if default == "required" else f" (default {default})"
    option = typer.Option(None, f"--{name.replace('_', '-')}", help=f"{field.description}{note}", show_default=False)
    kind: Any = field.annotation
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None)


def _default_out(command: str) -> Path:
    return Path("runs") / command


def _read_options(command: str, flags: dict[str, Any], required: str) -> RunOptions:
    """Read flags and environment.

    Raises:
        typer.BadParameter: an option is missing or has a value that cannot be used.
    """
    try:
        options = RunOptions(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        raise typer.BadParameter(
            fault["msg"], param_hint=f"'--{name.replace('_', '-')}' (TRAINER_{name.upper()})"
        ) from error
    if required and required not in options.model_fields_set:
        raise typer.BadParameter("it must be given.", param_hint=f"'--{required}'")
    if "out" not in options.model_fields_set:
        return options.model_copy(update={"out": _default_out(command)})
    return options.model_copy(update={"out": _trainer_folder(options.out)}) if required == "out" else options


@_command("out", "data", "profile", "seed", "device", "resume", "verbose")
def pretrain(options: RunOptions) -> None:
    """Pretrain an encoder without labels by HCL; writes OUT/encoder.pt and asks for nothing."""
    from trainer.run.pipeline import Pipeline

    weights = Pipeline(options).pretrain()
    print(f"pretrained weights: {weights}")
    print(f"next: python -m trainer finetune --pretrained {weights} --data {options.data}")


@_command(*RunOptions.model_fields, required="pretrained")
def finetune(options: RunOptions) -> None:
    """Fine-tune actively: ask for labels in rounds, and freeze predictions of the test images."""
    from trainer.run.pipeline import Pipeline

    pipeline = Pipeline(options)
    with pipeline.client() as client:
        pipeline.finetune(pipeline.pretrain(), client)
    print(f"report: {pipeline.report_path}")
    print(f"next: python -m trainer evaluate --out {options.out} --data {options.data} --service {options.service}")


@_command(*RunOptions.model_fields)
def run(options: RunOptions) -> None:
    """Do everything: pretrain, fine-tune actively, submit the test predictions, seal the run, write the report."""
    from trainer.run.pipeline import Pipeline

    pipeline = Pipeline(options)
    with pipeline.client() as client:
        # An hour of pretraining for a service that is not there would be an hour lost.
        client.wait_until_ready()
        pipeline.check_service(client)
        ticket = pipeline.finetune(pipeline.pretrain(), client)
    pipeline.evaluate(ticket)
    _print_result(options.out)
    print(f"report: {pipeline.report_path}")


@_command("out", "data", "service", "log_key", "patience_s", "verbose", required="out")
def evaluate(options: RunOptions) -> None:
    """Submit the frozen test predictions of a fine-tuned run, once; seals the run and compares the counts."""
    from trainer.oracle.witness import Witness
    from trainer.records.progress import StageClock
    from trainer.run.evaluate import submit
    from trainer.run.pipeline import witnessed_client
    from trainer.run.session import read_config

    out = options.out
    # All that can be wrong here is found before the one evaluation is used.
    ticket, config = _ticket_of(out), read_config(out)
    images = _load_images_of(out, options.data)
    witness = Witness(out, options.log_key)
    with witnessed_client(options, witness, ticket) as client:
        submit(out, client, ticket, config, StageClock(out))
    _print_result(out)
    _write_report(out, ticket, images)


@_command("out", "data", "verbose", required="out")
def report(options: RunOptions) -> None:
    """Write OUT/report.html from what a run has recorded so far, finished or not."""
    _write_report(options.out, _ticket_of(options.out), _load_images_of(options.out, options.data))


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="PNG or JPEG files, and folders of them.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder of a finished run.", envvar="TRAINER_OUT", show_default=False)
    ] = None,
    model: Annotated[Path | None, typer.Option(help="File that `export` wrote.", show_default=False)] = None,
    to: Annotated[Path | None, typer.Option(help="File to write; else standard output.", show_default=False)] = None,
    format_: Annotated[
        _Format, typer.Option("--format", help="csv: file, class, probability. json: those of every class too.")
    ] = _Format.csv,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Classify pictures by the model of a run; asks for no label."""
    from trainer.run.predict import write_predictions

    with _sentences():
        write_predictions(_model_of(out, model), files, device, to, format_.value)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder of a finished run.", envvar="TRAINER_OUT", show_default=False)],
    to: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
) -> None:
    """Write all that prediction needs into one file, for `predict --model`."""
    from trainer.run.predict import export_model

    with _sentences():
        print(export_model(_model_of(out, None), to))


def _model_of(out: Path | None, model: Path | None) -> Path:
    if (out is None) == (model is None):
        raise ConfigError("name either the run's folder (--out) or a file of `export` (--model)")
    if model is not None:
        return model
    from trainer.run.model_file import MODEL_FILE

    assert out is not None
    if not out.is_dir():
        raise DataError(f"there is no folder {out}; --out names the folder of a finished run")
    return _trainer_folder(out) / MODEL_FILE


def _trainer_folder(out: Path) -> Path:
    """Return the trainer's own folder of a run: `make run` keeps it inside of its OUT."""
    from trainer.run.session import CONFIG_FILE

    inner = out / "trainer"
    return inner if (inner / CONFIG_FILE).exists() and not (out / CONFIG_FILE).exists() else out


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn the user's errors into one sentence and an exit code."""
    try:
        yield
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        raise typer.Exit(_EXIT_INTERRUPTED) from None


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two to four runs over the same images.")],
    to: Annotated[Path, typer.Option(help="The page to write.")] = Path("runs/compare.html"),
) -> None:
    """Write one page that puts several runs side by side: accuracies, times, queries in common."""
    from trainer.run.compare import write_comparison

    with _sentences():
        print(f"comparison: {write_comparison([_trainer_folder(run) for run in runs], to)}")


def _write_report(out: Path, ticket: "RunTicket", images: "ImageSet") -> None:
    from trainer.run.report import write_report

    print(f"report: {write_report(out, images.pool.numpy(), ticket.dataset.class_names)}")


def _load_images_of(out: Path, data: Path) -> "ImageSet":
    """Load the images that a run was made with, and no others."""
    from trainer.images.data import load_images
    from trainer.run.session import read_config

    images = load_images(data)
    if images.fingerprint != read_config(out).images:
        raise DataError(f"{data} holds other images than the run in {out} was made with; give its own --data")
    return images


def _ticket_of(out: Path) -> "RunTicket":
    from trainer.run.session import read_ticket

    ticket = read_ticket(out)
    if ticket is None:
        raise DataError(f"{out} holds no run that asked the label service; begin one with `run` or `finetune`")
    return ticket


def _print_result(out: Path) -> None:
    from trainer.records.run_records import describe_classes, read_result

    result = read_result(out)
    assert result is not None
    print(f"queries counted by the trainer: {result.queries_counted_by_trainer}")
    print(f"queries in the service's log:   {result.queries_in_log}")
    if result.evaluation is not None:
        low, high = result.evaluation.ci95
        print(f"test accuracy: {result.evaluation.accuracy:.2%} (95% interval {low:.2%} to {high:.2%})")
    for name, value in describe_classes(result):
        print(f"{name}: {value}")


def _guard(options: RunOptions, work: Work, *, begins: bool) -> None:
    """Run a command under its log, and turn the user's errors into one sentence and an exit code."""
    from trainer.records.progress import setup_logging

    out = options.out
    try:
        if _rank() > 0:
            from trainer.learning.ranks import serve

            serve(options.device, options.patience_s)
            return
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file; name a folder")
        if not begins and not out.is_dir():
            raise DataError(f"there is no folder {out}; begin a run with `python -m trainer run --out {out}`")
        with setup_logging(out, options.verbose):
            try:
                with _all_ranks(options):
                    work(options)
            except TrainerError as error:
                logging.getLogger("trainer").debug("stopped", exc_info=error)
                raise
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        adding = " with --resume" if begins and not options.resume else ""
        print(
            f"\ninterrupted, and nothing that was paid for is lost; the same command{adding} goes on", file=sys.stderr
        )
        raise typer.Exit(_EXIT_INTERRUPTED) from None


def _rank() -> int:
    """Return this process's number among those that torchrun started together; 0 without it."""
    return int(os.environ.get("RANK", 0)) if _processes() > 1 else 0


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _all_ranks(options: RunOptions) -> AbstractContextManager[None]:
    if _processes() == 1:
        return nullcontext()
    from trainer.learning.ranks import joined

    return joined(options.device, options.patience_s)


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m trainer")
