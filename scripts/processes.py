"""Start, watch and stop the programs of a run.

Notable choices: children die with this process even on kill -9 (Linux), because a service left behind would hold the
database against the next try. The service gets a session of its own, so that Ctrl-C ends the trainer first and the
service after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import httpx

from scripts.errors import RunError
from trainer.errors import RecordsUnwritable

HOST = "127.0.0.1"
# Migrating and seeding 70,000 labels takes seconds; a slow disk may take ten times that.
READY_TIMEOUT_S = 120.0
# The trainer writes its state when it is interrupted; the service finishes the request it has.
STOP_TIMEOUT_S = 15.0
INTERRUPTED_TIMEOUT_S = 3.0
# linux/prctl.h
PR_SET_PDEATHSIG = 1


def choose_port(wanted: int) -> int:
    """Return `wanted` if it is free on the loopback address, or any free port if it is 0.

    Raises:
        RunError: another program has the port.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # As the server will: a port that only has old connections winding down is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            raise RunError(
                f"Port {wanted} of {HOST} cannot be used ({error}): name another with PORT=, or none for a free one."
            ) from error
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running_service(
    command: Sequence[str], url: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run the service while the block runs: wait until it is ready, and stop it whatever happens.

    Args:
        command: the whole command line.
        url: where it will answer.
        log: file that takes its output, appended.
        environment: None for this process's own.

    Raises:
        RunError: it ended before it was ready, or was not ready in time; the message has the end of its output.
    """
    begin = log.stat().st_size if log.exists() else 0
    service = start(command, log, environment)
    try:
        _wait_until_ready(service, url, log, begin)
        yield
    finally:
        stop(service)


_GOES_ON = " The same command goes on from here."


def run_to_its_end(
    name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, goes_on_after: Collection[int] = ()
) -> None:
    """Run a program in the foreground; on an interrupt let it finish its own way first.

    Args:
        name: of the program, for people.
        command: the whole command line.
        environment: None for this process's own.
        goes_on_after: exit codes after which the same command goes on as it is; with any, it does after a kill too.

    Raises:
        RunError: it ended with an error, whose exit code is passed on, or by a signal.
    """
    child = subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent())
    try:
        code = child.wait()
    except KeyboardInterrupt:
        # The terminal sends Ctrl-C to the child as well: a second signal would cut its own ending short.
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            child.wait(INTERRUPTED_TIMEOUT_S)
        raise
    finally:
        stop(child)
    if code < 0:
        raise RunError(f"{name} was killed by {signal.Signals(-code).name}.{_GOES_ON if goes_on_after else ''}")
    if code > 0:
        advice = _GOES_ON if code in goes_on_after else ""
        raise RunError(f"{name} ended with exit code {code}; the reason stands above.{advice}", code)


def start(
    command: Sequence[str],
    log: Path | None,
    environment: Mapping[str, str] | None = None,
    cores: Collection[int] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own: Ctrl-C does not reach it, and the caller has to stop it.

    Args:
        command: the whole command line.
        log: file that takes its output, appended; None for the console.
        environment: None for this process's own.
        cores: the cores that it and its children may use; None for those of this process.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log is not None else None
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT,
            start_new_session=True, preexec_fn=_die_with_parent(cores),
        )  # fmt: skip


def environment_without(*prefixes: str) -> dict[str, str]:
    """Return this process's environment without the variables of these prefixes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a program by SIGTERM, and by SIGKILL if that takes too long. One that has ended is only waited for."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_TIMEOUT_S)
    if child.poll() is None:
        child.kill()
    child.wait()


def last_lines(log: Path, begin: int = 0, count: int = 15) -> str:
    """Return the last lines of a log from byte `begin` on, indented, or a remark that there are none."""
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()[-count:] if log.exists() else []
    return "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"


def exit_code_of(program: str, work: Callable[[], None], after_interrupt: str) -> int:
    """Do the work of a program, and return its exit code; every expected error is one sentence on standard error.

    SIGTERM counts as Ctrl-C, so that the children are stopped on either.

    Args:
        program: its name in messages.
        work: what it does.
        after_interrupt: what the same command does after an interrupt.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        work()
    except (RunError, RecordsUnwritable) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; {after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _wait_until_ready(service: subprocess.Popen[bytes], url: str, log: Path, begin: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    # trust_env=False: a proxy setting must not come between two programs on one machine.
    with httpx.Client(trust_env=False, timeout=2.0) as client:
        while time.monotonic() < deadline:
            if service.poll() is not None:
                raise RunError(
                    f"The label service ended at once with exit code {service.returncode}; its last words:\n"
                    f"{last_lines(log, begin)}"
                )
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{url}/readyz").status_code == httpx.codes.OK:
                    return
            time.sleep(0.1)
    raise RunError(
        f"The label service was not ready after {READY_TIMEOUT_S:.0f} seconds; its last words:\n"
        f"{last_lines(log, begin)}"
    )


def _die_with_parent(cores: Collection[int] | None = None) -> Callable[[], None] | None:
    """Return what a child does before its program: ask for SIGTERM at its parent's death (Linux), keep to its cores."""
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def arrange() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return arrange
