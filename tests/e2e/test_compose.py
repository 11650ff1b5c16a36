"""`docker compose up` for real: both images built, a label by curl, the log, the trainer, and its isolation.

Every check of isolation has a twin that shows it can fail. Takes some minutes; needs an engine (see `engine.py`).
"""

import json
import subprocess

import httpx
import pytest

from scripts import counts
from tests.support.engine import PROJECT, Compose, find_engine, running_engine
from trainer.records.run_records import read_queries, read_result

ENGINE, WHY_NOT = find_engine()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # the first test pays for the engine, both builds and the smoke run
    pytest.mark.skipif(ENGINE is None, reason=WHY_NOT),
]

# Prints every file of the container that is a label file by its content, gunzipped where need be: IDX magic number
# 0x00000801, and as many bytes after the header as it announces.
FIND_LABEL_FILES = """
import gzip, os, struct
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
    for name in files:
        path = os.path.join(folder, name)
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            content = file.read(8)
            if content[:2] == b"\\x1f\\x8b":
                try:
                    with gzip.open(path) as unpacked:
                        content = unpacked.read()
                except OSError:
                    continue
            elif content[:4] == b"\\x00\\x00\\x08\\x01":
                content += file.read()
        if content[:4] == b"\\x00\\x00\\x08\\x01" and len(content) == 8 + struct.unpack(">I", content[4:8])[0]:
            print(path)
"""
# The search must not be blind to a file that only its owner may read.
READ_EVERYTHING = ("--user", "0:0", "--cap-add", "DAC_READ_SEARCH")
# Prints the interfaces that have a default route (destination and mask zero; proc(5), /proc/net/route).
FIND_DEFAULT_ROUTES = """
for line in open("/proc/net/route").read().splitlines()[1:]:
    interface, destination, *_, mask, _, _, _ = line.split()
    if destination == mask == "00000000":
        print(interface)
"""
DESCRIBE_PROCESS = """
import errno, json, os, pathlib
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
try:
    pathlib.Path("/written").write_text("no")
    root = "writable"
except OSError as error:
    root = errno.errorcode[error.errno]
print(json.dumps({"uid": os.getuid(), "root": root, "capabilities": int(status["CapEff"], 16),
                  "bounding": int(status["CapBnd"], 16), "no_new_privileges": int(status["NoNewPrivs"])}))
"""
HAS_TORCH = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"


@pytest.fixture(scope="module")
def compose(tmp_path_factory):
    """The compose project with both images built; taken down with its volume at the end."""
    folder = tmp_path_factory.mktemp("compose")
    with running_engine(ENGINE, folder) as environment:
        project = Compose(environment, folder)
        project("build", timeout=1500)
        try:
            yield project
        finally:
            project("--profile", "*", "down", "-v", "--rmi", "local", check=False)


@pytest.fixture(scope="module")
def service(compose):
    """The service up and healthy, with one label asked for by curl."""
    compose("up", "-d", "--wait", "label_service")
    answer = subprocess.run(["curl", "-fsS", f"{compose.url}/label/42"], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["id"] == 42
    return compose


@pytest.fixture(scope="module")
def finished(service):
    """The trainer run to its end by a plain `docker compose up`, on a host folder that was not there before."""
    assert not service.results.exists()
    service("up", "-d")
    trainer = service("ps", "-aq", "trainer").stdout.strip()
    code = service.docker("wait", trainer, timeout=1200).stdout.strip()
    assert code == "0", service("logs", "--no-color", "trainer").stdout[-5000:]
    return service


def read_log(compose):
    """Return the entries of the query log as the published port gives them."""
    return [json.loads(line) for line in httpx.get(f"{compose.url}/v1/log/export.ndjson").text.splitlines()]


def read_log_id(compose):
    """Return the id of the log that the service keeps now."""
    return httpx.get(f"{compose.url}/v1/log/summary").json()["log_id"]


def test_label_asked_by_curl_is_on_the_record(service):
    """A bare curl gets a label and leaves an entry under the guest."""
    (entry,) = [entry for entry in read_log(service) if entry["op"] == "query" and entry["run"] == "guest"]
    assert (entry["ids"], entry["outcome"], entry["charged"]) == ([42], "revealed", 1)


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/metrics", "/healthz", "/readyz"])
def test_pages_are_in_the_image(service, path):
    """What the service serves besides labels needs files of its package, and the image has them."""
    assert httpx.get(service.url + path).status_code == 200


def test_service_is_published_on_the_loopback_address_only(service):
    """The service's port is open to this machine and to no other."""
    container = service("ps", "-q", "label_service").stdout.strip()
    (published,) = json.loads(service.docker("inspect", container).stdout)[0]["NetworkSettings"]["Ports"].values()
    assert {binding["HostIp"] for binding in published} == {"127.0.0.1"}


def test_counts_of_trainer_and_log_agree(finished):
    """The smoke run's own count is what the log charged it for; the curl stands beside it."""
    (folder,) = finished.results.iterdir()
    result = read_result(folder)
    assert result is not None
    log = counts.count_log(read_log(finished), result.run_id)
    assert log.queries > 0
    assert counts.find_disagreements(result, read_queries(folder), log) == []
    assert log.elsewhere == {42}


def test_results_belong_to_the_trainers_user(finished):
    """The results folder that the engine made as root's was given to the numeric user, without any preparation."""
    (folder,) = finished.results.iterdir()
    assert {path.stat().st_uid for path in (finished.results, folder, folder / "report.html")} == {1000}


def test_finished_trainer_is_left_alone(finished):
    """Another `up` of a finished trainer asks for nothing and exits with 0."""
    before = len(read_log(finished))
    again = finished("run", "--rm", "-T", "trainer")
    assert "This run is finished" in again.stdout
    assert len(read_log(finished)) == before


def test_trainer_has_no_label_file_in_image_or_mounts(finished):
    """No file that the trainer's container can see, results included, is a label file, gzipped or not."""
    assert finished.python("trainer", FIND_LABEL_FILES, *READ_EVERYTHING) == ""


def test_search_for_label_files_finds_the_services_own(service):
    """The twin: the same search in the service's container finds both label files."""
    found = service.python("label_service", FIND_LABEL_FILES, *READ_EVERYTHING).splitlines()
    assert sorted(found) == ["/data/labels/t10k-labels-idx1-ubyte.gz", "/data/labels/train-labels-idx1-ubyte.gz"]


def test_search_for_label_files_finds_an_unpacked_one_among_the_results(finished):
    """The twin for mounts and for files that are not gzipped: one put among the results is found."""
    (folder,) = finished.results.iterdir()
    planted = folder / "innocent.bin"
    planted.write_bytes(bytes.fromhex("00000801 00000003 070102"))
    try:
        found = finished.python("trainer", FIND_LABEL_FILES, *READ_EVERYTHING)
    finally:
        planted.unlink()
    assert found == f"/results/{folder.name}/innocent.bin"


def test_trainer_is_on_an_internal_network_without_a_way_out(service):
    """The trainer's only network is internal, and its container has no default route."""
    (network,) = json.loads(service.docker("network", "inspect", f"{PROJECT}_labels").stdout)
    assert network["Internal"] is True
    assert service.python("trainer", FIND_DEFAULT_ROUTES) == ""
    config = json.loads(service("config", "--format", "json").stdout)
    assert list(config["services"]["trainer"]["networks"]) == ["labels"]


def test_service_has_the_default_route_that_the_trainer_lacks(service):
    """The twin: the service, on a second network, does have one, and that network is not internal."""
    (network,) = json.loads(service.docker("network", "inspect", f"{PROJECT}_front").stdout)
    assert network["Internal"] is False
    container = service("exec", "-T", "label_service", "python", "-c", FIND_DEFAULT_ROUTES)
    assert container.stdout.strip() != ""


@pytest.mark.parametrize("name", ["label_service", "trainer"])
def test_container_has_no_privilege(service, name):
    """Both run as a numeric non-root user, on a read-only root, with no capability and no way to gain one."""
    found = json.loads(service.python(name, DESCRIBE_PROCESS))
    assert found.pop("uid") > 0
    assert found == {"root": "EROFS", "capabilities": 0, "bounding": 0, "no_new_privileges": 1}


def test_ordinary_container_fails_the_check_of_privilege(service):
    """The twin: the same program in an ordinary container of the same image, as root, finds all of it."""
    image = json.loads(service("config", "--format", "json").stdout)["services"]["label_service"].get("image")
    run = [
        "run",
        "--rm",
        "-i",
        "--user",
        "0:0",
        "--network",
        "none",
        image or f"{PROJECT}-label_service",
        "python",
        "-",
    ]
    found = json.loads(service.docker(*run, input=DESCRIBE_PROCESS).stdout)
    assert found["uid"] == 0
    assert found["root"] == "writable"
    assert found["capabilities"] > 0
    assert found["no_new_privileges"] == 0


def test_service_image_has_no_pytorch_and_the_trainers_has(service):
    """The service stays small; the twin shows that the check can say yes."""
    assert service.python("label_service", HAS_TORCH) == "False"
    assert service.python("trainer", HAS_TORCH) == "True"


def test_gpu_profile_starts_the_gpu_trainer_instead(compose):
    """`--profile gpu` replaces the CPU trainer; without it there is only the CPU one."""
    plain = compose("config", "--services").stdout.split()
    gpu = compose("--profile", "gpu", "config", "--services").stdout.split()
    assert set(plain) - set(gpu) == {"trainer"}
    assert set(gpu) - set(plain) == {"trainer_gpu"}


def test_down_keeps_the_log_and_down_v_drops_it(finished):
    """`down` and `up` again: the same log goes on. `down -v`: a fresh one begins."""
    before, log_id = read_log(finished), read_log_id(finished)
    finished("down")
    finished("up", "-d", "--wait", "label_service")
    assert (read_log(finished)[: len(before)], read_log_id(finished)) == (before, log_id)
    finished("down", "-v")
    finished("up", "-d", "--wait", "label_service")
    assert [entry for entry in read_log(finished) if entry["op"] == "query"] == []
    assert read_log_id(finished) != log_id
