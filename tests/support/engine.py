"""A container engine for the tests that need one, and the compose project they use.

LABELMETER_ENGINE names it: a script that runs a command with an engine up and takes the engine down afterwards
(it sets DOCKER_HOST, and HOST_BUILD to an override file for builds), or `host` for the engine that runs already.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
# Two engines at once would take each other's folders and mounts away; a second test session waits for the first.
LOCK = Path(tempfile.gettempdir()) / "labelmeter-engine.lock"
# An engine fetches packages and makes a base image the first time.
ENGINE_TIMEOUT_S = 600
PROJECT = "labelmeter-test"


def find_engine():
    """Return the engine's name, or the reason why there is none."""
    name = os.environ.get("LABELMETER_ENGINE", "")
    if not name:
        return None, "NO CONTAINER ENGINE: set LABELMETER_ENGINE to `host`, or to a script that brings one up"
    if name == "host":
        found = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
        return (
            (name, "")
            if found
            else (None, "NO CONTAINER ENGINE: LABELMETER_ENGINE is host, but docker does not answer")
        )
    if not os.access(name, os.X_OK):
        return None, f"NO CONTAINER ENGINE: LABELMETER_ENGINE names {name}, which cannot be executed"
    return name, ""


@contextlib.contextmanager
def running_engine(name, folder):
    """Have an engine up while the block runs; yield the environment that reaches it."""
    if name == "host":
        yield dict(os.environ)
        return
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _engine_by(name, folder) as environment:
            yield environment


@contextlib.contextmanager
def _engine_by(name, folder):
    """Start the engine through the script called `name`, and take it down in the end."""
    address, log = folder / "engine.env", folder / "engine.log"
    # The engine lives as long as this pipe: also when the tests are killed, it is taken down.
    hold = 'printf "%s\\n%s\\n" "$DOCKER_HOST" "$HOST_BUILD" > "$0.part"; mv "$0.part" "$0"; exec cat'
    with log.open("wb") as output:
        engine = subprocess.Popen(
            [name, "bash", "-c", hold, str(address)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + ENGINE_TIMEOUT_S
        while not address.exists():
            assert engine.poll() is None, f"the engine did not come up:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"the engine is not up yet:\n{log.read_text()[-3000:]}"
            time.sleep(0.2)
        docker_host, host_build = address.read_text().splitlines()
        yield {**os.environ, "DOCKER_HOST": docker_host, "HOST_BUILD": host_build}
    finally:
        engine.stdin.close()
        engine.wait(120)


class Compose:
    """One compose project: `docker compose` with the right files, project name and settings."""

    def __init__(self, environment, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.results = folder / "results"
        self.environment = {
            **environment,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "LABELMETER_PORT": str(self.port),
            "LABELMETER_RESULTS": str(self.results),
            "TRAINER_PROFILE": "smoke",
        }
        self.files = ["-f", "docker-compose.yml"]
        if "HOST_BUILD" in environment:
            self.files += ["-f", environment["HOST_BUILD"]]
        wheels = find_wheels()
        if wheels is not None:
            override = folder / "wheels.yaml"
            build = {"build": {"additional_contexts": {"wheels": str(wheels)}}}
            override.write_text(yaml.safe_dump({"services": {"trainer": build}}))
            self.files += ["-f", str(override)]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, *arguments, check=True, **options):
        """Run `docker compose ARGUMENTS`; return the finished process with its output as text."""
        return self.docker("compose", *self.files, *arguments, check=check, **options)

    def docker(self, *arguments, check=True, **options):
        """Run `docker ARGUMENTS`; on failure show its output."""
        result = subprocess.run(
            ["docker", *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, **options
        )
        if check and result.returncode:
            print(result.stdout[-3000:], result.stderr[-3000:], file=sys.stderr)
        assert not check or result.returncode == 0, f"docker {' '.join(arguments)} failed: {result.stderr[-2000:]}"
        return result

    def python(self, service, program, *options):
        """Run a Python program in a fresh container of a service, as it is configured; return what it prints."""
        run = ["run", "--rm", "--no-deps", "-T", *options, service, "python", "-"]
        return self(*run, input=program).stdout.strip()


def find_wheels():
    """Return the folder of wheels that this machine's pip is address to look into, if any."""
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    ).stdout.strip()
    folder = Path(os.environ.get("PIP_FIND_LINKS") or configured or "/nonexistent")
    return folder if folder.is_dir() else None
