"""Start, watch and stop the two programs of a run: a service that must be up, a trainer that must be left to finish.

Notable choices: the children die with this process even on kill -9 (Linux), because a service left behind would hold
the database against the next try; the service gets a session of its own, so that Ctrl-C ends the trainer first and
the service after it.
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

HOST = "127.0.0.1"
# Migrating and seeding 70,000 labels takes seconds; a slow disk may take ten times that.
READY_TIMEOUT_S = 120.0
# The trainer writes its state when it is interrupted; the service finishes the request it has.
STOP_TIMEOUT_S = 15.0
FAREWELL_S = 3.0
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
def running_service(command: Sequence[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service while the block runs, from its first readiness on, and stop it whatever happens.

    Args:
        command: the whole command line.
        url: where it will answer.
        log: file that takes its output, appended.

    Raises:
        RunError: it ended before it was ready, or was not ready in time; its last words are part of the message.
    """
    with log.open("ab") as output:
        begin = output.tell()
        service = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=_die_with_parent(),
        )  # fmt: skip
    try:
        _wait_until_ready(service, url, log, begin)
        yield service
    finally:
        stop(service)


def run_to_its_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program in the foreground and return its exit status; on an interrupt let it finish its own way first."""
    child = subprocess.Popen(command, env=dict(environment), preexec_fn=_die_with_parent())
    try:
        return child.wait()
    except KeyboardInterrupt:
        # The terminal sends Ctrl-C to the child as well: telling it a second time would cut its farewell short.
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            child.wait(FAREWELL_S)
        raise
    finally:
        stop(child)


def start(command: Sequence[str], log: Path | None, cores: Collection[int] | None) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own: Ctrl-C does not reach it, and who started it has to stop it.

    Args:
        command: the whole command line.
        log: file that takes its output, appended; None for the console.
        cores: all that it and its children may use; None for those of this process.
    """
    die = _die_with_parent()

    def arrange() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        if die is not None:
            die()

    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log is not None else None
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT,
            start_new_session=True, preexec_fn=arrange,
        )  # fmt: skip


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a program: politely, then after a while for certain. One that has ended is only collected."""
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


def interrupt_on_sigterm() -> None:
    """Treat SIGTERM like Ctrl-C, so that the children are stopped on either."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


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


def _die_with_parent() -> Callable[[], None] | None:
    """Return what makes a child get SIGTERM when this process dies, where the system can do that (Linux)."""
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return arrange
