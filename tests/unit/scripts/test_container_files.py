"""What the container files promise, read from the files, so also where no engine can run (tests/e2e runs them)."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
TRAINERS = ["trainer", "trainer_gpu"]


def sources(service):
    """Return what a compose service mounts."""
    return [mount["source"] if isinstance(mount, dict) else mount.split(":")[0] for mount in service["volumes"]]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_hardened(name):
    """Read-only root, no capability, no new privileges, whichever container."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer_sits_on_the_internal_network_only(name):
    """No way out for a trainer: its one network is internal."""
    assert SERVICES[name]["networks"] == ["labels"]
    assert COMPOSE["networks"]["labels"]["internal"] is True


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer_mounts_its_results_and_not_the_database(name):
    """The volumes of the database and of the signed heads are the service's alone; a trainer reads the token."""
    token, images, _ = SERVICES[name]["volumes"]
    assert sources(SERVICES[name])[::2] == ["registration", "${LABELMETER_RESULTS:-./runs/compose}"]
    assert token.endswith(":ro")
    # A prepared folder's images, or a volume of the image's own: never its labels.
    assert images == "${LABELMETER_DATA:-images}${LABELMETER_DATA:+/images}:/data/images:ro"
    assert not set(sources(SERVICES[name])) & {"database", "heads", "key", "labels", "given_labels"}


def test_service_is_published_on_the_loopback_address_only():
    """Labels cost money: nobody else on the network may ask."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["front"]["ports"])
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["front"]


def test_gpu_trainer_replaces_the_cpu_trainer():
    """The two trainers are in different profiles, and the committed default picks the CPU one."""
    assert SERVICES["trainer"]["profiles"] == ["cpu"]
    assert SERVICES["trainer_gpu"]["profiles"] == ["gpu"]
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()


@pytest.mark.parametrize("name", ["Dockerfile.service", "Dockerfile.trainer"])
def test_container_runs_as_a_numeric_user(name):
    """The last USER is a number that is not root's, so an orchestrator can check it without the image's passwd."""
    users = [line.split()[1] for line in (ROOT / name).read_text().splitlines() if line.startswith("USER ")]
    user, group = users[-1].split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("name", ["Dockerfile.service", "Dockerfile.trainer"])
def test_base_image_is_a_build_argument(name):
    """Every stage but the empty one is built from BASE_IMAGE, python:3.11-slim-bookworm unless told otherwise."""
    lines = (ROOT / name).read_text().splitlines()
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm" in lines
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert bases <= {"${BASE_IMAGE}", "scratch"}


def test_each_image_copies_one_program():
    """The service's image has no trainer and the trainer's no service: they share no code."""
    copied = {
        name: {
            word for line in (ROOT / name).read_text().splitlines() if line.startswith("COPY ") for word in line.split()
        }
        for name in ("Dockerfile.service", "Dockerfile.trainer")
    }
    assert "label_service" in copied["Dockerfile.service"]
    assert "trainer" not in copied["Dockerfile.service"]
    assert "trainer" in copied["Dockerfile.trainer"]
    assert "label_service" not in copied["Dockerfile.trainer"]
