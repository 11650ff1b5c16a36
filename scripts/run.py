"""`make run`: the whole path, from no data to a checked count of labels, with one command.

prepare the data -> serve the labels from a database of this run alone -> pin the log's key -> train over HTTP -> save
the query log -> stop the service -> verify the log's evidence, count its entries here, and compare the trainer's files
with them. Repeat the same command after any interruption and it goes on; repeat it on a finished run and it checks
again and prints the same table.

Notable choices: the trainer gets the images folder, the service's address and no setting of the service; it never
sees the folder of labels. Exit codes: 0 fine, 1 failed or counts differ, 2 wrong options, 130 interrupted; the
trainer's and prepare's own codes are passed on.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import counts, evidence, files, finished_run, processes
from scripts.errors import RunError
from scripts.finished_run import CheckedRun
from scripts.options import MakeRunOptions, read_options
from trainer.errors import REPEATABLE, printable
from trainer.records.files import OWNER_ONLY, hash_file, replace_file
from trainer.records.progress import duration
from trainer.records.run_records import RunResult, describe_classes

DEFAULT_DATA = Path("data")
# Written by `prepare` to describe a data folder. A copy in the results folder tells which data the run began with.
CARD_FILE = "dataset.json"
# What a data set of torchvision's begins with in place of a path.
TORCHVISION = "torchvision:"
# Beside the service's database. It is passed on in the environment, because process lists show a command line.
TOKEN_FILE = "registration.token"  # noqa: S105 - the name of a file


@dataclass(frozen=True)
class Programs:
    """How the two programs and `make run` are started; tests put their own in."""

    service: tuple[str, ...] = (sys.executable, "-m", "label_service")
    trainer: tuple[str, ...] = (sys.executable, "-m", "trainer")
    run: tuple[str, ...] = (sys.executable, "-m", "scripts.run")


def main(arguments: Sequence[str], programs: Programs | None = None) -> int:
    """Run, and return the exit code; every expected error is one sentence on standard error."""

    def work() -> None:
        options = read_options(MakeRunOptions, arguments)
        with files.locked_folder(options.folder):
            run(options, programs or Programs())

    return processes.exit_code_of("make run", work, "the same command goes on from here, asking no label twice.")


def run(options: MakeRunOptions, programs: Programs) -> None:
    """Do what is left to do in the results folder, then check everything in it and print the table.

    Raises:
        RunError: a step failed, or a file does not agree with the log.
    """
    out = options.folder
    if (out / evidence.SUMMARY_FILE).exists():
        _announce("finished", f"{out} holds a finished run; checking it again")
        if options.data is not None and (options.data / CARD_FILE).exists():
            _refuse_another_data_set(options.data, out)
    else:
        _announce("data", "getting and checking the images and labels")
        data = _prepare(options, programs)
        url = f"http://{processes.HOST}:{processes.choose_port(options.port)}"
        service_log = out / "service" / "service.log"
        service_log.parent.mkdir(exist_ok=True)
        _announce("service", f"starting the label service on {url} (its output: {service_log})")
        token = _registration_token(service_log.parent / TOKEN_FILE)
        environment = processes.environment_without("LABEL_SERVICE_REGISTRATION_TOKEN")
        environment["LABEL_SERVICE_REGISTRATION_TOKEN"] = token
        command = _serve_command(options, programs, data, url)
        with processes.running_service(command, url, service_log, environment):
            evidence.pin_key(url, out)
            if not _is_trained(out):
                _train(options, programs, data, url, token)
            _announce("log", f"saving the query log to {out / evidence.LOG_FILE}")
            evidence.save_log(url, out)
        _announce("service", "stopped")
    checked = finished_run.check_finished_run(programs.service, out)
    _refuse_another_configuration(options, checked.result)
    print(f"\n{counts.format_table(_table_rows(checked, out))}\n", flush=True)
    print("The trainer's count and the log's agree.")


def _prepare(options: MakeRunOptions, programs: Programs) -> Path:
    """Have the data prepared and return its folder; note it in the results.

    Raises:
        RunError: there is no such data, it cannot be prepared, or the results were begun with other data.
    """
    out, given = options.folder, options.data
    is_named = given is not None and str(given).startswith(TORCHVISION)
    if given is not None and not is_named and not (given.is_file() or (given.is_dir() and any(given.iterdir()))):
        raise RunError(
            f"The data {given} are missing or empty: give a folder of pictures or IDX files, a CSV or NPZ file, or "
            "leave DATA out and Fashion-MNIST is fetched.",
            exit_code=2,
        )
    # A folder without dataset.json is the user's own: it is only read, and `prepare` writes a copy into the results,
    # divided into images and labels.
    is_own = given is not None and not (given / CARD_FILE).exists()
    data = out / "data" if is_own else given or DEFAULT_DATA
    command = [*programs.service, "prepare", "--data", str(data), *_data_flags(options)]
    command += ["--from", str(given)] if is_own else []
    card = files.read_json(data / CARD_FILE)
    if card.get("redraw_seed") is not None:
        command += ["--redraw", str(card["redraw_seed"]), "--redraw-from", card.get("redrawn_from") or "training"]
    processes.run_to_its_end("preparing the data", command)
    # The results tell which data they belong to.
    replace_file(out / CARD_FILE, json.dumps(_refuse_another_data_set(data, out), indent=2))
    return data


def _data_flags(options: MakeRunOptions) -> list[str]:
    """Return the service's flags for data that need not be Fashion-MNIST."""
    return ["--other-data"] if options.data is not None else []


def _refuse_another_data_set(data: Path, out: Path) -> dict[str, Any]:
    """Return the card of a data set, which must be the one that the results belong to.

    Raises:
        RunError: the results were begun with another one: its database would answer for the images of this one.
    """
    card, begun_with = files.read_json(data / CARD_FILE), files.read_json(out / CARD_FILE)
    if begun_with and begun_with.get("files") != card.get("files"):
        raise RunError(
            f"{out} was begun with {begun_with.get('name')}, and {data} holds another data set ({card.get('name')}): "
            "choose another OUT=.",
            exit_code=2,
        )
    return card


def _serve_command(options: MakeRunOptions, programs: Programs, data: Path, url: str) -> list[str]:
    database = (options.folder / "service" / "labels.sqlite3").resolve()
    command = [*programs.service, "serve", "--data", str(data / "labels"), "--database-url", f"sqlite:///{database}"]
    return [*command, "--host", processes.HOST, "--port", url.rpartition(":")[2], *_data_flags(options)]


def _registration_token(path: Path) -> str:
    """Return the token with which this run's trainer, and nobody else, may open a run; made the first time."""
    if not path.exists():
        replace_file(path, secrets.token_urlsafe(32), mode=OWNER_ONLY)
    return path.read_text()


def _train(options: MakeRunOptions, programs: Programs, data: Path, url: str, token: str) -> None:
    """Run the trainer to its end.

    Raises:
        RunError: the trainer failed; it has printed the reason itself, and its exit code is passed on.
    """
    folder = options.folder / "trainer"
    command = [*programs.trainer, "run", "--service", url, "--data", str(data / "images"), "--out", str(folder)]
    command += ["--log-key", evidence.pinned_key(options.folder), *options.trainer_flags()]
    is_begun = folder.is_dir() and any(folder.iterdir())
    command += ["--resume"] if is_begun else []
    _announce("trainer", "going on from where it stopped" if is_begun else "starting")
    # The trainer knows nothing of the service but its address, and takes its options from the command line alone.
    environment = processes.environment_without("LABEL_SERVICE_", "TRAINER_")
    environment["TRAINER_REGISTRATION_TOKEN"] = token
    processes.run_to_its_end("the trainer", command, environment, goes_on_after=REPEATABLE)
    if not _is_trained(options.folder):
        raise RunError(f"the trainer ended without an error but left no result.json and report.html in {folder}.")


def _table_rows(checked: CheckedRun, out: Path) -> list[tuple[str, str]]:
    """Return the closing table of a run: counts of both sides, accuracy, times, places."""
    result, log = checked.result, checked.log
    report = out / "trainer" / "report.html"
    return [
        ("data set", printable(str(files.read_json(out / CARD_FILE).get("name", "unknown")))),
        ("profile, seed, budget", f"{result.profile}, {result.seed}, {result.budget}"),
        ("queries counted by the trainer", f"{result.queries_counted_by_trainer:,}"),
        ("queries of the run, by the log", f"{log.queries:,}"),
        ("distinct labels of the run, by the log", f"{len(log.labels):,}"),
        ("labels revealed to anybody else", f"{len(log.elsewhere):,}"),
        ("test accuracy, by the log", counts.format_accuracy(checked.evaluation)),
        *describe_classes(result),
        ("wall time of the trainer", duration(sum(result.stage_seconds.values()))),
        *((f"  {name}", duration(seconds)) for name, seconds in result.stage_seconds.items()),
        ("report", str(report) if report.exists() else "missing; `python -m trainer report` writes it again"),
        ("query log", str(out / evidence.LOG_FILE)),
        ("evidence", f"{checked.verdict} ({out / evidence.BUNDLE_FILE})"),
    ]


def _refuse_another_configuration(options: MakeRunOptions, result: RunResult) -> None:
    """Refuse a finished run that was made with other options (for an unfinished one the trainer does this).

    Raises:
        RunError: an option that was given differs, or a file that it names cannot be read.
    """
    begun = files.read_json(options.folder / "trainer" / "config.json")
    profile = begun.get("profile", {})
    rounds = ",".join(str(settings["labels"]) for settings in profile.get("rounds", ()))
    for name, value, own in (
        ("seed", options.seed, result.seed),
        ("profile", None if options.profile == "auto" else options.profile, result.profile),
        ("budget", options.budget, result.budget),
        ("rounds", options.rounds and ",".join(str(int(labels)) for labels in options.rounds.split(",")), rounds),
        ("strategy", options.strategy, profile.get("strategy")),
        ("target", options.target, begun.get("target")),
        ("class prior", options.class_prior, begun.get("class_prior")),
        ("working size", options.working_size, profile.get("working_px")),
        ("features", _sha256(options.features), begun.get("own_features")),
        ("features' use", options.features and options.features_use, profile.get("graph", {}).get("own_features")),
        ("pretrained weights", _sha256(options.pretrained), begun.get("pretrained")),
    ):
        if value is not None and value != own:
            raise RunError(
                f"{options.folder} holds a finished run with {name} {own}, and {name} {value} was asked for: "
                "choose another OUT=.",
                exit_code=2,
            )


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return hash_file(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", exit_code=2) from error


def _is_trained(out: Path) -> bool:
    return all((out / "trainer" / name).exists() for name in ("result.json", "report.html"))


def _announce(step: str, what: str) -> None:
    print(f"[{step}] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
