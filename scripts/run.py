"""`make run`: the whole path, from no data to a checked count of labels, with one command.

prepare the data -> serve the labels from a database of this run alone -> pin the log's key -> train over HTTP -> save
the query log -> stop the service -> count the log here, compare with the trainer, and verify the log's evidence. Repeat
the same command after any interruption and it goes on; repeat it on a finished run and it checks again and prints the
same table.

Notable choices: the trainer gets the images folder, the service's address and no setting of the service; it never
sees the folder of labels. Exit codes: 0 fine, 1 failed or counts differ, 2 wrong options, 130 interrupted; the
trainer's and prepare's own codes are passed on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from scripts import counts, evidence, files, processes
from scripts.errors import RunError

DEFAULT_DATA = Path("data")
# A thousand queries make a log of well under a megabyte; the service is on this machine.
EXPORT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Programs:
    """How the two programs and `make run` are started; tests put their own in."""

    service: tuple[str, ...] = (sys.executable, "-m", "label_service")
    trainer: tuple[str, ...] = (sys.executable, "-m", "trainer")
    run: tuple[str, ...] = (sys.executable, "-m", "scripts.run")


@dataclass(frozen=True)
class Wish:
    """What the caller asked for. None and empty mean: not asked for, take the default."""

    data: Path | None
    out: Path
    profile: str
    seed: int
    budget: int | None
    port: int
    device: str
    strategy: str
    pretrained: Path | None
    target: float | None


def main(arguments: Sequence[str] | None = None, programs: Programs | None = None) -> int:
    """Run, and return the exit code; every expected error is one sentence on standard error."""
    wish = parse(arguments)
    processes.interrupt_on_sigterm()
    try:
        with files.only_one_at_a_time(wish.out):
            run(wish, programs or Programs())
    except RunError as error:
        print(f"make run: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nmake run: interrupted; the same command goes on from here, asking no label twice.", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> Wish:
    """Read the options, each of which `make run` passes on under the same name in capitals."""
    parser = argparse.ArgumentParser(prog="make run", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--data", type=Path, help="folder of data: made by prepare, or with four IDX files of your own")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of results; default runs/PROFILE-seedSEED with what else differs from the default",
    )
    parser.add_argument("--profile", default="", help="the trainer's profile; default: chosen by the hardware")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything random; default 1")
    parser.add_argument("--budget", type=int, help="most labels to ask for; default: the profile's")
    parser.add_argument("--port", type=int, default=0, help="port of the label service; default: any free one")
    parser.add_argument("--device", default="", help="device to train on; default: CUDA if there is one, else CPU")
    parser.add_argument("--strategy", default="", help="how to choose what to ask; default: the profile's")
    parser.add_argument("--pretrained", type=Path, help="weights of `trainer pretrain`; default: pretrain here")
    parser.add_argument("--target", type=float, help="stop asking at this accuracy, such as 0.9, by the run's estimate")
    given = parser.parse_args(arguments)
    out = given.out
    if out is None:
        budget = "" if given.budget is None else f"-{given.budget}"
        budget += f"-{given.strategy}" if given.strategy else ""
        budget += f"-target{given.target}" if given.target is not None else ""
        data = "" if given.data is None else f"-on-{given.data.resolve().name}"
        out = Path("runs") / f"{given.profile or 'auto'}-seed{given.seed}{budget}{data}"
    return Wish(
        given.data,
        out,
        given.profile,
        given.seed,
        given.budget,
        given.port,
        given.device,
        given.strategy,
        given.pretrained,
        given.target,
    )


def run(wish: Wish, programs: Programs) -> None:
    """Do what is left to do in `wish.out`, then check the counts and print the table.

    Raises:
        RunError: a step failed, or the counts disagree.
    """
    out = wish.out
    log = out / evidence.LOG_FILE
    if _is_trained(out) and log.exists():
        _say("finished", f"{out} holds a finished run; checking its counts again")
        _refuse_another_configuration(wish)
    else:
        _say("data", "getting and checking the images and labels")
        data, other_data = _prepare(wish, programs)
        url = f"http://{processes.HOST}:{processes.choose_port(wish.port)}"
        service_log = out / "service" / "service.log"
        service_log.parent.mkdir(exist_ok=True)
        _say("service", f"starting the label service on {url} (its output: {service_log})")
        with processes.running_service(_serve_command(wish, programs, data, other_data, url), url, service_log):
            _pin_key(url, out)
            if not _is_trained(out):
                _train(wish, programs, data, url)
            _say("log", f"saving the query log to {log}")
            _save_log(url, out)
        _say("service", "stopped")
    _check_and_report(out, programs)


def _prepare(wish: Wish, programs: Programs) -> tuple[Path, bool]:
    """Have the data prepared; return the parted folder, and whether other data than Fashion-MNIST is welcome."""
    data, source, other_data = DEFAULT_DATA, None, False
    if wish.data is not None:
        if not wish.data.is_dir() or not any(wish.data.iterdir()):
            raise RunError(
                f"The data folder {wish.data} is missing or empty: give one with four IDX files, or leave DATA out and "
                "Fashion-MNIST is fetched.",
                exit_code=2,
            )
        # A folder without a card is the user's own: it is read, and parted into a copy inside the results.
        is_prepared = (wish.data / "dataset.json").exists()
        data, source, other_data = (wish.data, None, True) if is_prepared else (wish.out / "data", wish.data, True)
    command = [*programs.service, "prepare", "--data", str(data)]
    command += ["--from", str(source)] if source else []
    command += ["--other-data"] if other_data else []
    card = files.read_json(data / "dataset.json")
    if card.get("redraw_seed") is not None:
        command += ["--redraw", str(card["redraw_seed"]), "--redraw-from", card.get("redrawn_from") or "training"]
    code = processes.run_to_its_end(command, os.environ)
    if code:
        raise RunError(f"preparing the data {_ended(code)}.", code if code > 0 else 1)
    _remember_data_set(data, wish.out)
    return data, other_data


def _remember_data_set(data: Path, out: Path) -> None:
    """Note which data set the results belong to, and refuse results that were begun with another one.

    Without this a database seeded from one data set would answer for the images of another.
    """
    now, begun_with = files.read_json(data / "dataset.json"), files.read_json(out / "dataset.json")
    if begun_with and begun_with.get("files") != now.get("files"):
        raise RunError(
            f"{out} was begun with {begun_with.get('name')}, and {data} holds another data set ({now.get('name')}): "
            "choose another OUT=.",
            exit_code=2,
        )
    files.write_atomically(out / "dataset.json", json.dumps(now, indent=2).encode())


def _serve_command(wish: Wish, programs: Programs, data: Path, other_data: bool, url: str) -> list[str]:
    database = (wish.out / "service" / "labels.sqlite3").resolve()
    command = [*programs.service, "serve", "--data", str(data / "labels"), "--database-url", f"sqlite:///{database}"]
    command += ["--host", processes.HOST, "--port", url.rpartition(":")[2]]
    return [*command, "--other-data"] if other_data else command


def _train(wish: Wish, programs: Programs, data: Path, url: str) -> None:
    """Run the trainer to its end.

    Raises:
        RunError: it ended with an error; its own sentence stands above, its exit code is passed on.
    """
    folder = wish.out / "trainer"
    command = [*programs.trainer, "run", "--service", url, "--data", str(data / "images"), "--out", str(folder)]
    command += ["--seed", str(wish.seed), "--log-key", evidence.pinned_key(wish.out)]
    command += ["--profile", wish.profile] if wish.profile else []
    command += ["--budget", str(wish.budget)] if wish.budget is not None else []
    command += ["--device", wish.device] if wish.device else []
    command += ["--strategy", wish.strategy] if wish.strategy else []
    command += ["--target", str(wish.target)] if wish.target is not None else []
    command += ["--pretrained", str(wish.pretrained)] if wish.pretrained is not None else []
    resume = folder.is_dir() and any(folder.iterdir())
    command += ["--resume"] if resume else []
    _say("trainer", "going on from where it stopped" if resume else "starting")
    # The trainer is told nothing about the service but its address.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LABEL_SERVICE_")}
    code = processes.run_to_its_end(command, environment)
    if code:
        raise RunError(
            f"the trainer {_ended(code)}. The same command goes on from here.",
            code if code > 0 else 1,
        )
    if not _is_trained(wish.out):
        raise RunError(f"the trainer ended without an error but left no result.json and report.html in {folder}.")


def _ended(code: int) -> str:
    """Return how a program ended, from its exit status as `subprocess` has it (negative: a signal's number)."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}; the reason stands above"


def _pin_key(url: str, out: Path) -> None:
    try:
        with httpx.Client(base_url=url, trust_env=False) as client:
            evidence.pin_key(client, out)
    except httpx.HTTPError as error:
        raise RunError(f"the log's key could not be read from {url} ({error}); run the same command again.") from error


def _save_log(url: str, out: Path) -> None:
    """Save every entry of the query log, the service's own summary of it beside it, and the evidence bundle."""
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=EXPORT_TIMEOUT_S) as client:
            summary = client.get("/v1/log/summary").raise_for_status()
            files.write_atomically(out / "query-log-summary.json", summary.content)
            evidence.save_log(client, out)
    except httpx.HTTPError as error:
        raise RunError(f"the query log could not be read from {url} ({error}); run the same command again.") from error


def _check_and_report(out: Path, programs: Programs) -> None:
    """Count the saved log, compare with the trainer, verify the evidence, print the table.

    Raises:
        RunError: the counts disagree (the table is printed all the same), or the evidence does not hold.
    """
    result = counts.read_result(out / "trainer" / "result.json")
    log = counts.count_log(counts.read_lines(out / evidence.LOG_FILE), result["run_id"])
    disagreements = counts.find_disagreements(result, counts.read_lines(out / "trainer" / "queries.jsonl"), log)
    dataset = files.read_json(out / "dataset.json").get("name", "unknown")
    shown = "not verified" if disagreements else evidence.verify_bundle(programs.service, out)
    print(f"\n{counts.format_table(counts.table_rows(result, log, dataset, shown, out))}\n", flush=True)
    if disagreements:
        raise RunError(f"the counts do not agree: {'; '.join(disagreements)}. Do not trust this run.")
    print("The trainer's count and the log's agree.")


def _refuse_another_configuration(wish: Wish) -> None:
    """Refuse to show a finished run as the answer to another question (an unfinished one the trainer refuses)."""
    result = counts.read_result(wish.out / "trainer" / "result.json")
    asked = {"seed": wish.seed, "profile": wish.profile or None, "budget": wish.budget}
    for name, value in asked.items():
        if value is not None and value != result[name]:
            raise RunError(
                f"{wish.out} holds a finished run with {name} {result[name]}, and {name} {value} was asked for: choose "
                "another OUT=.",
                exit_code=2,
            )


def _is_trained(out: Path) -> bool:
    return all((out / "trainer" / name).exists() for name in ("result.json", "report.html"))


def _say(step: str, what: str) -> None:
    print(f"[{step}] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
