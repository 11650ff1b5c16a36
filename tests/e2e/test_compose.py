"""`docker compose up` for real: both images built, a label by curl, the log, the trainer, and its isolation.

Every check of isolation has a twin that shows it can fail. Takes some minutes; needs an engine (see `engine.py`).
"""

import json
import os
import subprocess
import tomllib

import httpx
import pytest

from scripts import counts
from tests.support.datasets import make_idx_dataset
from tests.support.engine import PROJECT, ROOT, Compose, find_engine, running_engine
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
    compose("up", "-d", "--wait", "front")
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


def inspect(compose, name):
    """Return what the engine knows about a service's container."""
    container = compose("ps", "-aq", name).stdout.strip()
    return json.loads(compose.docker("inspect", container).stdout)[0]


def mounts_of(compose, name):
    """Return the volumes and folders that a service's container has, without the temporary ones."""
    return [mount for mount in inspect(compose, name)["Mounts"] if mount["Type"] in ("volume", "bind")]


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
    (published,) = inspect(service, "front")["NetworkSettings"]["Ports"].values()
    assert {binding["HostIp"] for binding in published} == {"127.0.0.1"}
    assert not any((inspect(service, "label_service")["NetworkSettings"]["Ports"] or {}).values())


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


@pytest.mark.parametrize("name", ["label_service", "trainer"])
def test_container_is_on_an_internal_network_without_a_way_out(service, name):
    """The only network of both programs is internal, and their containers have no default route."""
    (network,) = json.loads(service.docker("network", "inspect", f"{PROJECT}_labels").stdout)
    assert network["Internal"] is True
    assert service.python(name, FIND_DEFAULT_ROUTES) == ""
    config = json.loads(service("config", "--format", "json").stdout)
    assert list(config["services"][name]["networks"]) == ["labels"]


def test_front_has_the_default_route_that_the_programs_lack(service):
    """The twin: the container that publishes the port, on a second network, does have one. It holds nothing."""
    (network,) = json.loads(service.docker("network", "inspect", f"{PROJECT}_front").stdout)
    assert network["Internal"] is False
    assert service("exec", "-T", "front", "python", "-c", FIND_DEFAULT_ROUTES).stdout.strip() != ""
    assert inspect(service, "front")["Mounts"] == []
    assert service.python("front", FIND_LABEL_FILES, "--user", "0:0") == ""


@pytest.mark.parametrize("name", ["label_service", "front", "trainer", "labels", "results_folder"])
def test_container_has_limits(finished, name):
    """None can take the machine's memory or its processes; none but the trainer more than one core."""
    limits = inspect(finished, name)["HostConfig"]
    assert limits["Memory"] > 0
    assert 0 < limits["PidsLimit"] <= 1024
    assert name == "trainer" or 0 < limits["NanoCpus"] <= 10**9


def test_signing_key_is_on_a_volume_of_its_own(finished):
    """Who gets at the database has no key, and the trainer has neither."""
    mounts = {
        mount["Name"].removeprefix(f"{PROJECT}_"): mount["Destination"]
        for mount in mounts_of(finished, "label_service")
    }
    assert mounts.pop("registration") == "/var/lib/labelmeter-registration"
    assert mounts == {
        "labels": "/data/labels",
        "database": "/var/lib/labelmeter",
        "key": "/var/lib/labelmeter-key",
        "heads": "/var/lib/labelmeter-heads",
    }
    find = "import pathlib; print(*(p for p in pathlib.Path('/var/lib').glob('labelmeter*/*') if 'key' in p.suffix))"
    (key,) = finished.python("label_service", find).split()
    assert key.startswith("/var/lib/labelmeter-key/")
    theirs = {mount.get("Name", "").removeprefix(f"{PROJECT}_") for mount in mounts_of(finished, "trainer")}
    assert theirs == {"registration", "images", ""}


def test_health_check_writes_nothing(service):
    """It asks whether the service answers; the heartbeat of /readyz would be a write each time."""
    messages = service("logs", "--no-color", "label_service").stdout
    assert '"GET /healthz" 200' in messages
    own = [line for line in messages.splitlines() if " 127.0.0.1 " in line]
    assert own and not any("/readyz" in line for line in own)


@pytest.mark.parametrize(("name", "module"), [("label_service", "label_service"), ("trainer", "trainer")])
def test_image_knows_its_version(service, name, module):
    """The metadata of the package is in the image."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    shown = service("run", "--rm", "--no-deps", "-T", name, "python", "-m", module, "--version").stdout
    assert shown.split()[-1] == version


@pytest.mark.parametrize("name", ["label_service", "front", "trainer"])
def test_container_has_no_privilege(service, name):
    """They run as a numeric non-root user, on a read-only root, with no capability and no way to gain one."""
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
    finished("up", "-d", "--wait", "front")
    assert (read_log(finished)[: len(before)], read_log_id(finished)) == (before, log_id)
    finished("down", "-v")
    finished("up", "-d", "--wait", "front")
    assert [entry for entry in read_log(finished) if entry["op"] == "query"] == []
    assert read_log_id(finished) != log_id


def test_another_data_set_by_one_command(compose, tmp_path_factory):
    """`LABELMETER_DATA`: labels of mode 0700 reach the service alone, images the trainer alone, and the run counts."""
    compose("down", "-v")
    folder = tmp_path_factory.mktemp("other")
    data = make_idx_dataset(folder / "data", pool=1000, test=100)
    for path in (data / "labels", *(data / "labels").iterdir()):
        path.chmod(0o700)
        os.chown(path, 4321, 4321)
    other = Compose({**compose.environment, "LABELMETER_DATA": str(data)}, folder)
    other("up", "-d")
    trainer = other("ps", "-aq", "trainer").stdout.strip()
    code = other.docker("wait", trainer, timeout=900).stdout.strip()
    assert code == "0", other("logs", "--no-color", "trainer").stdout[-5000:]
    assert httpx.get(f"{other.url}/v1/dataset").json()["pool_size"] == 1000
    (results,) = other.results.iterdir()
    assert (
        counts.find_disagreements(
            read_result(results), read_queries(results), counts.count_log(read_log(other), read_result(results).run_id)
        )
        == []
    )
    assert other.python("trainer", FIND_LABEL_FILES, *READ_EVERYTHING) == ""
    assert len(other.python("label_service", FIND_LABEL_FILES, *READ_EVERYTHING).splitlines()) == 2
    sources = [mount["Source"] for name in ("trainer", "label_service") for mount in mounts_of(other, name)]
    assert [source for source in sources if str(data) in source] == [str(data / "images")]


def test_a_folder_that_is_not_prepared_is_one_sentence(compose, tmp_path):
    """A path that is mistyped is an empty folder, which the engine makes."""
    other = Compose({**compose.environment, "LABELMETER_DATA": str(tmp_path / "nothing")}, tmp_path)
    assert other("up", "-d", "front", check=False).returncode != 0
    (sentence,) = other("logs", "--no-color", "--no-log-prefix", "labels").stdout.strip().splitlines()
    assert "name a folder made by `python -m label_service prepare`" in sentence
