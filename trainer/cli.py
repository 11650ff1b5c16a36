"""The command line: `python -m trainer pretrain | finetune | evaluate | run | report`.

Each command is one stage over one folder (`--out`); `run` is all of them. A user's error is one sentence on stderr and
an exit code of `trainer.errors`; a traceback is always a defect of the trainer.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.errors import ConfigError, DataError, TrainerError
from trainer.run import session

if TYPE_CHECKING:
    from trainer.images.data import ImageSet
    from trainer.run.pipeline import Pipeline, Settings

# What shells report for a program ended by Ctrl-C.
_EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="trainer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn to classify images from few labels, each asked of the label service over HTTP.\n\n"
    "`run` does everything; the other commands are its stages. All of them keep their work in --out, "
    "show how long is left, can be interrupted, and go on with --resume.",
)

Out = Annotated[Path, typer.Option(help="Folder for weights, queries, logs and the report of this run.")]
Data = Annotated[Path, typer.Option(help="Images-only folder: the `images` folder that `label_service prepare` makes.")]
Service = Annotated[str, typer.Option(help="Address of the label service.", envvar="TRAINER_SERVICE")]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        help="cpu, gpu, curve, graph, paper or smoke; NAME-without-PART leaves a part out. auto takes the one that "
        "--pretrained was made with, else gpu where CUDA is found, else cpu.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random; the same seed asks for the same labels.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Budget = Annotated[
    int | None, typer.Option(help="Labels to ask for in all; the profile's number when left out.", min=1)
]
Strategy = Annotated[
    str | None,
    typer.Option(
        help="How to choose what to ask: uncertain-clusters (default), badge, coverage-margin, entropy, k-center, "
        "least-confidence, margin, probcover, random or typiclust."
    ),
]
Target = Annotated[
    float | None,
    typer.Option(
        help="Stop asking when the run's own estimate says that this accuracy is met, such as 0.9; no test label is "
        "read for it. The whole budget is spent when left out.",
        min=0.0,
        max=1.0,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what --out holds; nothing is asked twice.")]
Registration = Annotated[
    str | None,
    typer.Option(help="The operator's token, where opening a run needs one.", envvar="TRAINER_REGISTRATION_TOKEN"),
]
LogKey = Annotated[
    str | None,
    typer.Option(
        help="The public key that the service's log must be signed with; the first one seen when left out.",
        envvar="TRAINER_LOG_KEY",
    ),
]
Patience = Annotated[float, typer.Option("--patience-s", help="Seconds to wait for a service that does not answer.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show details on the console too.")]

_DATA = Path("data/images")
_SERVICE = "http://127.0.0.1:8000"


@app.command()
def pretrain(
    out: Out = Path("runs/pretrain"),
    data: Data = _DATA,
    profile: ProfileName = "auto",
    seed: Seed = 1,
    device: Device = "auto",
    resume: Resume = False,
    verbose: Verbose = False,
) -> None:
    """Pretrain an encoder without labels by HCL; writes OUT/encoder.pt and asks for nothing."""
    from trainer.run.pipeline import Settings

    settings = Settings(out, data=data, profile=profile, seed=seed, device=device, resume=resume)

    def stages(pipeline: "Pipeline") -> None:
        weights = pipeline.pretrain()
        print(f"pretrained weights: {weights}")
        print(f"next: python -m trainer finetune --pretrained {weights} --data {data}")

    _run(settings, verbose, stages)


@app.command()
def finetune(
    pretrained: Annotated[Path, typer.Option(help="Weights to start from: an encoder.pt made by `pretrain`.")],
    out: Out = Path("runs/finetune"),
    data: Data = _DATA,
    service: Service = _SERVICE,
    profile: ProfileName = "auto",
    seed: Seed = 1,
    device: Device = "auto",
    budget: Budget = None,
    strategy: Strategy = None,
    target: Target = None,
    registration_token: Registration = None,
    log_key: LogKey = None,
    patience_s: Patience = 300.0,
    resume: Resume = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune actively: ask for labels in rounds, and freeze predictions of the test images."""
    from trainer.run.pipeline import Settings

    settings = Settings(
        out,
        data=data,
        service=service,
        profile=profile,
        seed=seed,
        budget=budget,
        strategy=strategy,
        target=target,
        device=device,
        pretrained=pretrained,
        resume=resume,
        registration_token=registration_token,
        patience_s=patience_s,
        log_key=log_key,
    )

    def stages(pipeline: "Pipeline") -> None:
        with pipeline.client() as client:
            ticket = pipeline.finetune(pretrained, client)
        print(f"report: {pipeline.report(ticket)}")
        print(f"next: python -m trainer evaluate --out {out} --data {data} --service {service}")

    _run(settings, verbose, stages)


@app.command()
def run(
    out: Out = Path("runs/run"),
    data: Data = _DATA,
    service: Service = _SERVICE,
    profile: ProfileName = "auto",
    seed: Seed = 1,
    device: Device = "auto",
    pretrained: Annotated[
        Path | None, typer.Option(help="Weights of an earlier `pretrain`, instead of pretraining here.")
    ] = None,
    budget: Budget = None,
    strategy: Strategy = None,
    target: Target = None,
    registration_token: Registration = None,
    log_key: LogKey = None,
    patience_s: Patience = 300.0,
    resume: Resume = False,
    verbose: Verbose = False,
) -> None:
    """Do everything: pretrain, fine-tune actively, submit the test predictions, seal the run, write the report."""
    from trainer.run.pipeline import Settings

    settings = Settings(
        out,
        data=data,
        service=service,
        profile=profile,
        seed=seed,
        budget=budget,
        strategy=strategy,
        target=target,
        device=device,
        pretrained=pretrained,
        resume=resume,
        registration_token=registration_token,
        patience_s=patience_s,
        log_key=log_key,
    )

    def stages(pipeline: "Pipeline") -> None:
        with pipeline.client() as client:
            # An hour of pretraining for a service that is not there would be an hour lost.
            client.wait_until_ready()
            ticket = pipeline.finetune(pipeline.pretrain(), client)
        pipeline.evaluate(ticket)
        _print_result(out)
        print(f"report: {pipeline.report(ticket)}")

    _run(settings, verbose, stages)


@app.command()
def evaluate(
    out: Out,
    data: Data = _DATA,
    service: Service = _SERVICE,
    log_key: LogKey = None,
    patience_s: Patience = 300.0,
    verbose: Verbose = False,
) -> None:
    """Submit the frozen test predictions of a fine-tuned run, once; seals the run and compares the counts."""

    def work() -> None:
        from trainer.oracle.client import LabelClient
        from trainer.oracle.exchange import RECEIPTS_FILE
        from trainer.oracle.witness import Witness
        from trainer.records.progress import StageClock
        from trainer.run.evaluate import submit

        # All that can be wrong here is found before the one evaluation is used.
        ticket, config = _ticket_of(out), session.read_config(out)
        _load_images_of(out, data)
        witness = Witness(out, log_key)
        with LabelClient(
            service,
            token=ticket.token,
            patience_s=patience_s,
            receipts_path=out / RECEIPTS_FILE,
            witness=witness,
        ) as client:
            submit(out, client, ticket, config, StageClock(out))
        _print_result(out)
        _write_report(out, data)

    _guard(out, verbose, work)


@app.command()
def report(out: Out, data: Data = _DATA, verbose: Verbose = False) -> None:
    """Write OUT/report.html from what a run has recorded so far, finished or not."""
    _guard(out, verbose, lambda: _write_report(out, data))


def _write_report(out: Path, data: Path) -> None:
    from trainer.run.report import write_report

    names = _ticket_of(out).dataset.class_names
    print(f"report: {write_report(out, _load_images_of(out, data).pool.numpy(), names)}")


def _load_images_of(out: Path, data: Path) -> "ImageSet":
    """Load the images that a run was made with, and no others."""
    from trainer.images.data import load_images

    images = load_images(data)
    if images.fingerprint != session.read_config(out).images:
        raise DataError(f"{data} holds other images than the run in {out} was made with; give its own --data")
    return images


def _ticket_of(out: Path) -> session.RunTicket:
    ticket = session.read_ticket(out)
    if ticket is None:
        raise DataError(f"{out} holds no run that asked the label service; begin one with `run` or `finetune`")
    return ticket


def _print_result(out: Path) -> None:
    from trainer.records.run_records import read_result

    result = read_result(out)
    assert result is not None
    print(f"queries counted by the trainer: {result.queries_counted_by_trainer}")
    print(f"queries in the service's log:   {result.queries_in_log}")
    if result.evaluation is not None:
        low, high = result.evaluation.ci95
        print(f"test accuracy: {result.evaluation.accuracy:.2%} (95% interval {low:.2%} to {high:.2%})")


def _run(settings: "Settings", verbose: bool, stages: Callable[["Pipeline"], None]) -> None:
    from trainer.run.pipeline import Pipeline

    _guard(settings.out, verbose, lambda: stages(Pipeline(settings)), begins=True)


def _guard(out: Path, verbose: bool, work: Callable[[], None], *, begins: bool = False) -> None:
    """Run a command under its log, and turn the user's errors into one sentence and an exit code."""
    from trainer.records.progress import setup_logging

    try:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file; name a folder")
        if not begins and not out.is_dir():
            raise DataError(f"there is no folder {out}; begin a run with `python -m trainer run --out {out}`")
        with setup_logging(out, verbose):
            try:
                work()
            except TrainerError as error:
                logging.getLogger("trainer").debug("stopped", exc_info=error)
                raise
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command with --resume goes on in {out}", file=sys.stderr)
        raise typer.Exit(_EXIT_INTERRUPTED) from None


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m trainer")
