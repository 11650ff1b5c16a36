"""The command line: prepare, seed, serve, export, backup, restore, rotate-key, verify, witness, openapi, token, run.

An expected failure is one sentence and exit code 1; a proof that fails for `witness` is exit code 87.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from label_service import __version__
from label_service.errors import DatabaseRefused, SetupError
from label_service.settings import Settings

ENV_PREFIX, FIELDS = "LABEL_SERVICE_", frozenset(Settings.model_fields)

app = typer.Typer(
    help="The label database: prepares data, reveals labels over HTTP, charges and logs every query.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    """Print the version and end, as `--version` asks; do nothing without it."""
    if wanted:
        typer.echo(f"label-service {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Read the options that stand before a command. The program's help is the application's."""


# The trainer's exit code for the same: a proof of the service failed.
PROOF_FAILED = 87


def printable(text: str) -> str:
    """Return a text that a peer may have written, without what could steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def say(sentence: str) -> None:
    """Print a sentence for the operator on stderr; stdout is for the data that `export` writes."""
    typer.echo(sentence, err=True)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn an expected failure into its sentence and exit code 1."""
    try:
        yield
    except SetupError as error:
        say(f"Error: {error}")
        raise typer.Exit(1) from error


def load_settings(**given: Any) -> Settings:  # noqa: ANN401 - each setting has its own type
    """Return the settings: environment, overridden by the flags that were given.

    Raises:
        SetupError: a value does not fit its setting, or there is no such setting.
    """
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX) and name.upper().removeprefix(ENV_PREFIX).lower() not in FIELDS:
            raise SetupError(f"The service has no setting {name}; correct the name or unset it, see serve --help.")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        raise SetupError(
            f"The setting {name} (LABEL_SERVICE_{name.upper()}) is not usable: {fault['msg']}; see --help."
        ) from error


def takes_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each named field of `Settings`, and call it with the settings they make.

    The command's first parameter is `settings`; its other parameters stay options of its own. What it raises as a
    `SetupError` is printed as one sentence.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:  # noqa: ANN401 - each option has its own type
            with one_sentence():
                settings = load_settings(**{name: given.pop(name) for name in names})
                command(settings, **given)

        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        # A signature has what must be given before what has a default.
        parameters = sorted([*own, *map(_option, names)], key=lambda one: one.default is not inspect.Parameter.empty)
        # Typer reads both: the signature for names and defaults, the annotations for types and help.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _option(name: str) -> inspect.Parameter:
    """Return the option of a setting; its help is the setting's description, default and variable."""
    field = Settings.model_fields[name]
    default = "" if field.default is None else f"default {field.default}; "
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        # Round brackets: Typer reads square ones as markup.
        help=f"{field.description} ({default}LABEL_SERVICE_{name.upper()})",
        show_default=False,
    )
    # Any: the type of a field is known only while the program runs.
    kind: Any = field.annotation
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind | None, option]
    )


@app.command()
def prepare(
    data: Annotated[Path, typer.Option(help="Folder to make (or to verify, if it is made already).")] = Path("data"),
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Folder of four IDX files, folder of class folders of PNG or JPEG (with train/ and test/, or one "
            "folder), CSV of paths and labels, NPZ, torchvision:NAME:ROOT, or folder of a Hugging Face data set.",
        ),
    ] = None,
    redraw: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of a re-drawn split: as many training images as the test set has play the test set."
        ),
    ] = None,
    redraw_from: Annotated[
        Literal["training", "all"],
        typer.Option(
            help="Which images --redraw splits: `training`, for development, or `all`, for a test on a split "
            "that nobody developed on (its pool then has official test images)."
        ),
    ] = "training",
    other_data: Annotated[bool, typer.Option("--other-data", help="Accept files that are not Fashion-MNIST.")] = False,
    class_names: Annotated[
        str | None,
        typer.Option(help="Class names by class number, separated by commas; default: the source's, else 0,1,2,…"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of other data; default: the source folder's name.")] = None,
    size: Annotated[int | None, typer.Option(help="Scale every image to this height and width, 8 to 224.")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Make colour images grey.")] = False,
    test_share: Annotated[
        float | None, typer.Option(help="Share of the images, of each class, that becomes the test set, such as 0.2.")
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Declare that all classes are equally frequent; nothing is counted.")
    ] = False,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Shuffle IDX files too; all other sources are always shuffled.")
    ] = False,
    install: Annotated[
        bool, typer.Option("--install/--no-install", help="As root on Debian, may install dataset-fashion-mnist.")
    ] = True,
) -> None:
    """Get the data set, check it, and split it into DIR/labels (the service's) and DIR/images (the trainer's).

    Looks in --from; else in DIR itself; else in Debian's package dataset-fashion-mnist, installed or installable; else
    downloads the published files, which are checked by their SHA-256.
    """
    from label_service.data.prepare import PrepareOptions
    from label_service.data.prepare import prepare as make

    names = tuple(part.strip() for part in class_names.split(",")) if class_names is not None else None
    options = PrepareOptions(
        source=source,
        redraw_seed=redraw,
        redraw_from=redraw_from,
        other_data=other_data,
        class_names=names,
        name=name,
        install=install,
        size=size,
        grey=grey,
        balanced=balanced,
        test_share=test_share,
        shuffle=shuffle,
    )
    with one_sentence():
        card = make(data, options, say)
    say(
        f"{data} holds {card.name}: {card.pool_size:,} pool and {card.test_size:,} test images, "
        f"{len(card.class_names)} classes (from: {card.source})."
    )


@app.command()
@takes_settings("data", "database_url", "other_data")
def seed(settings: Settings) -> None:
    """Fill an empty database with the labels of a prepared folder. Doing it twice changes nothing."""
    from label_service.data.seed import read_label_files
    from label_service.service import open_service
    from label_service.store.backends import find_database

    # Unlike serve, seed has nothing to do without label files, even if the database is seeded already.
    read_label_files(settings.data, settings.other_data)
    with open_service(settings) as service:
        dataset = service.dataset
    say(f"{find_database(settings).name} holds {dataset.name}: {dataset.pool_size:,} labels to ask for.")


@app.command()
@takes_settings(*(name for name in Settings.model_fields if name != "registration_token"))
def serve(settings: Settings) -> None:
    """Serve the labels; seeds an empty database from the data folder first.

    LABEL_SERVICE_REGISTRATION_TOKEN (environment only) makes opening a run need that bearer token.
    """
    from label_service.web.server import serve as run

    run(settings, say)


@app.command()
@takes_settings("database_url")
def export(
    settings: Settings,
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
) -> None:
    """Write the query log as one JSON entry a line, from the database itself; the service need not run."""
    from sqlalchemy.exc import SQLAlchemyError

    from label_service.log.log_reader import LogReader
    from label_service.store.backends import find_database, reason_of

    database = find_database(settings)
    engine = database.open_reading_engine()
    try:
        with out.open("wb") if out is not None else nullcontext(sys.stdout.buffer) as target:
            target.writelines(LogReader(engine).export())
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseRefused(f"The log of {database.name} cannot be exported ({reason_of(error)}).") from error
    finally:
        engine.dispose()


@app.command()
@takes_settings("database_url", "key_folder", "heads_folder", "data")
def backup(
    settings: Settings,
    to: Annotated[Path, typer.Option(help="Folder to make. Keep it as secret as the database: it holds the labels.")],
    with_key: Annotated[bool, typer.Option("--with-key", help="Copy the log's signing key too.")] = False,
) -> None:
    """Copy the log and its labels into a new folder, checked, with a manifest. The service may run meanwhile."""
    from label_service.backup import back_up

    manifest = back_up(settings, to, with_key)
    key = "with its signing key" if with_key else "without its signing key, which is kept elsewhere"
    say(f"{to} holds {manifest.log_id}: {manifest.entries:,} entries, {key}.")


@app.command()
@takes_settings("database_url", "key_folder", "heads_folder", "data", "other_data", "guest_budget")
def restore(
    settings: Settings,
    source: Annotated[Path, typer.Argument(metavar="FROM", help="Folder that backup made.")],
    nothing_followed: Annotated[
        bool,
        typer.Option(
            "--nothing-followed", help="The service wrote nothing after this backup, though no head shows it."
        ),
    ] = False,
    accept_lost_entries: Annotated[
        bool,
        typer.Option("--accept-lost-entries", help="Begin a new log that names the old one: entries or key are lost."),
    ] = False,
) -> None:
    """Put a backup into an empty place, after a check of all of it. Never overwrites, and never forks a log."""
    from label_service.backup import restore as put_back

    done = put_back(settings, source, nothing_followed=nothing_followed, accept_lost_entries=accept_lost_entries)
    if done.forerunner is None:
        say(f"Restored {done.log_id}; serve goes on with it.")
    else:
        say(
            f"Began {done.log_id}: {done.forerunner.describe()}. Its runs and budgets begin anew, and it has a key of "
            f"its own: tell everybody who pinned the old one. The old log's evidence is in {done.evidence}."
        )


@app.command("rotate-key")
@takes_settings("database_url", "key_folder", "heads_folder", "data")
def rotate_key(settings: Settings) -> None:
    """Replace the log's signing key by a new one that the old one names, in an entry. Stop the service before."""
    from label_service.rotation import rotate_key as replace

    rotation = replace(settings)
    say(
        f"Entry {rotation.seq:,} replaces the log's key {rotation.old_key} by {rotation.new_key}. Whoever pinned the "
        "old one goes on; publish the new one, and take a new copy of the key."
    )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Evidence bundle: GET /v1/log/evidence, or OUT/evidence.json.")],
    key: Annotated[str, typer.Option(help="A key of the log, pinned before the first query (GET /v1/log/key).")],
    receipts: Annotated[
        Path | None, typer.Option(help="receipts.jsonl that the trainer kept: finds forks and cut ends too.")
    ] = None,
) -> None:
    """Verify an evidence bundle offline: signature, tree, and every entry by the rules. Exit code 1 if it fails."""
    from label_service.log.kept_answers import read_receipts
    from label_service.log.merkle import VerificationError
    from label_service.log.signed_note import Verifier
    from label_service.log.verify import read_bundle
    from label_service.log.verify import verify as check

    try:
        kept = read_receipts(receipts) if receipts is not None else []
        verdict = check(read_bundle(bundle), Verifier.from_vkey(key), kept)
    except VerificationError as error:
        typer.echo(printable(f"not verified: {error}"))
        raise typer.Exit(1) from error
    typer.echo(f"{verdict.origin}: {verdict.entries:,} entries, {len(verdict.labels):,} distinct labels to anybody")
    for name, run in verdict.runs.items():
        opened = "" if receipts is None else f", {len(verdict.opened.get(name, ())):,} labels in the receipts"
        typer.echo(
            printable(
                f"  {name}: {run.queries:,} queries, {len(run.labels):,} distinct labels, {run.replays:,} replays, "
                f"{run.refusals:,} refusals, {run.evaluations:,} evaluations{opened}"
            )
        )
    if verdict.uncommitted:
        typer.echo(f"  {verdict.uncommitted:,} entries are older than the commitment to the answer key")
    if not verdict.signed_pool_size:
        typer.echo("  the number of labels in the answer key is the bundle's word: no entry of this log names it")
    if verdict.clock_set_back:
        first, *more = verdict.clock_set_back
        others = f" and {len(more):,} later entries" if more else ""
        typer.echo(f"  the service's clock went back at entry {first}{others}")
    for rotation in verdict.rotations:
        typer.echo(f"  the log's key was replaced at entry {rotation.seq:,}, as the key before has signed")
    if verdict.forerunner is not None:
        typer.echo(printable(f"  {verdict.forerunner.describe()}"))
    if receipts is None:
        typer.echo("verified, without receipts")
    else:
        typer.echo(f"verified with {verdict.receipts:,} receipts and {verdict.openings:,} labels as committed to")


_PLACE = ("database_url", "data", "key_folder", "host", "port")
_Url = Annotated[str | None, typer.Option(help="Address of the service; default: this machine, the service's port.")]
token_commands = typer.Typer(help="Teams' tokens of the running service: what each team may use.", no_args_is_help=True)
run_commands = typer.Typer(help="Runs of the running service.", no_args_is_help=True)
app.add_typer(token_commands, name="token")
app.add_typer(run_commands, name="run")


@token_commands.command("create")
@takes_settings(*_PLACE)
def create_token(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Name of the token: small letters, digits and hyphens.")],
    budget: Annotated[int, typer.Option(min=0, help="Labels that all runs opened with it may be charged together.")],
    evaluations: Annotated[
        int | None, typer.Option(min=0, help="Evaluations that they may make together; default: no limit of its own.")
    ] = None,
    expires: Annotated[
        datetime | None, typer.Option(help="UTC time from which it gives nothing new; default: never.")
    ] = None,
    url: _Url = None,
) -> None:
    """Make a team's token and print it, once, on standard output; the service keeps its hash."""
    from label_service.operator import OperatorClient

    body = {"name": name, "budget": budget, "evaluations": evaluations}
    if expires is not None:
        body["expires"] = f"{expires.isoformat()}Z"
    made = OperatorClient(settings, url).call("POST", "/v1/tokens", body)
    say(f"The token {name} grants {budget:,} labels. Give it to the team now, it is not shown again:")
    typer.echo(printable(str(made.get("token"))))


@token_commands.command("list")
@takes_settings(*_PLACE)
def list_tokens(settings: Settings, url: _Url = None) -> None:
    """Print each team's token: labels and evaluations used and granted, runs, expiry, state."""
    from label_service.operator import OperatorClient

    made = OperatorClient(settings, url).call("GET", "/v1/tokens").get("tokens", [])
    lines = [("name", "labels", "evaluations", "runs", "expires", "state")]
    for token in made:
        allowed = token["evaluations_allowed"]
        lines.append(
            (
                *(token["name"], f"{token['queries']}/{token['budget']}"),
                f"{token['evaluations_used']}/{'-' if allowed is None else allowed}",
                *(str(token["runs"]), token["expires"] or "never", token["state"]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo(printable("  ".join(cells).rstrip()))


@token_commands.command("revoke")
@takes_settings(*_PLACE)
def revoke_token(
    settings: Settings, name: Annotated[str, typer.Argument(help="Name of the token.")], url: _Url = None
) -> None:
    """End a team's token for good: its runs get no new label and no evaluation, labels they have stay free."""
    _end(settings, url, "tokens", name, "revoke")
    say(f"The token {name} is revoked.")


@run_commands.command("close")
@takes_settings(*_PLACE)
def close_run(
    settings: Settings, run_id: Annotated[str, typer.Argument(help="Id of the run.")], url: _Url = None
) -> None:
    """End a run for good: its client gets 410 from then on. The log says that the operator did it."""
    _end(settings, url, "runs", run_id, "close")
    say(f"The run {run_id} is closed.")


def _end(settings: Settings, url: str | None, kind: str, name: str, verb: str) -> None:
    """Let the running service end a token or a run."""
    from urllib.parse import quote

    from label_service.operator import OperatorClient

    OperatorClient(settings, url).call("POST", f"/v1/{kind}/{quote(name, safe='')}:{verb}")


@app.command()
def openapi() -> None:
    """Write the OpenAPI document of the service's calls to stdout."""
    import json

    from label_service.web.app import openapi_document

    typer.echo(json.dumps(openapi_document(), indent=1, ensure_ascii=True))


@app.command()
def witness(
    url: Annotated[str, typer.Argument(help="Address of the service, such as http://HOST:8000.")],
    heads: Annotated[Path, typer.Option(help="File of the signed heads that were seen.")] = Path(
        "witnessed-heads.jsonl"
    ),
    key: Annotated[
        str | None, typer.Option(help="The log's verifier key. Default: the file's, else the service's own word.")
    ] = None,
    interval_s: Annotated[float, typer.Option(min=1, help="Seconds from one look to the next.")] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Keep the signed heads of a log from another machine. Exit code 87 if the log does not grow from them."""
    from label_service.log.merkle import VerificationError
    from label_service.witness import NoAnswer, Witness

    try:
        with one_sentence():
            kept = Witness(url, heads, key)
            while True:
                try:
                    head = kept.look()
                except NoAnswer as error:
                    if once:
                        raise NoAnswer(printable(str(error))) from error
                    say(printable(str(error)))
                else:
                    origin = printable(head.origin)
                    typer.echo(f"{origin}: {head.size:,} entries, and they begin with all that was seen before")
                if once:
                    return
                time.sleep(interval_s)
    except VerificationError as error:
        say(f"DO NOT TRUST THIS LOG: {printable(str(error))}. The heads are in {heads}.")
        raise typer.Exit(PROOF_FAILED) from error
