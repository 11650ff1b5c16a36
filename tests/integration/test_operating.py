"""What docs/operating.md tells an operator to do: its preset and its nginx configuration, tried."""

import contextlib
import html
import os
import re
import shutil
import socket
import ssl
import subprocess
import time

import httpx
import pytest

from tests.docs import ROOT, section
from tests.support import service_process
from tests.support.datasets import make_idx_dataset

PRESET = ROOT / "presets/team.env"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")


def read_preset():
    """Return the variables as a shell that reads the file has them."""
    read = subprocess.run(
        ["bash", "-c", 'set -aeu; . "$0"; env -0', str(PRESET)], env={}, capture_output=True, text=True, check=True
    )
    pairs = [pair.partition("=") for pair in read.stdout.split("\0")]
    return {name.removeprefix("LABEL_SERVICE_").lower(): value for name, _, value in pairs if name.startswith("LABEL_")}


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """A service with the preset, its folder, and the registration token that it made."""
    folder = tmp_path_factory.mktemp("team")
    data = make_idx_dataset(folder / "data", pool=3000)
    token = folder / "registration.token"
    settings = read_preset() | {"registration_token_file": token}
    with service_process.run_process(data, folder, **settings) as (_, url):
        yield url, token.read_text().strip()


def test_the_preset_gives_strangers_nothing(team):
    """No label without a token, no run without the registration token."""
    url, _ = team
    assert httpx.get(f"{url}/label/1").json()["code"] == "guest-closed"
    refused = httpx.post(f"{url}/v1/runs", json={"name": "a stranger's", "budget": 1})
    assert refused.json()["code"] == "registration-closed"


def test_the_preset_gives_members_what_the_page_says(team):
    """A default budget, a largest one, a number of evaluations, a rate."""
    url, token = team
    admit = {"Authorization": f"Bearer {token}"}

    def open_run(**terms):
        return httpx.post(f"{url}/v1/runs", json={"name": "a member's", **terms}, headers=admit).json()

    opened = open_run()
    assert opened["budget"] == 400
    assert open_run(budget=2001)["code"] == "run-budget-too-large"
    assert open_run(budget=10, evaluation_budgets=[1, 2, 3, 4, 5])["code"] == "too-many-evaluations"
    run = {"Authorization": f"Bearer {open_run(budget=2000)['token']}"}
    asked = [httpx.post(f"{url}/v1/labels:query", json={"ids": [*range(1000)]}, headers=run) for _ in range(4)]
    assert [answer.status_code for answer in asked] == [200, 200, 200, 429]


@pytest.fixture(scope="module")
def proxied(team, tmp_path_factory):
    """What reaches the page's nginx, and the registration token."""
    url, token = team
    with run_nginx(url, tmp_path_factory.mktemp("nginx")) as client:
        yield client, token


@contextlib.contextmanager
def run_nginx(url, folder, under_a_path=False):
    """The page's nginx, with ports, certificate and folders of its own; yields a client of it."""
    if NGINX is None or OPENSSL is None:
        pytest.skip("NGINX NOT TRIED: install nginx-light and openssl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = ["-subj", "/CN=labels.example.org", "-addext", "subjectAltName=DNS:labels.example.org,IP:127.0.0.1"]
    pair = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *pair, *name], check=True, capture_output=True
    )
    examples = re.findall(r"```nginx\n(.*?)```", section("docs/operating.md", "TLS and a reverse proxy"), re.DOTALL)
    server, location = examples
    if under_a_path:
        server, replaced = re.subn(r" +location / \{\n +proxy_pass [^\n]+\n", lambda _: location, server)
        assert replaced == 1
    for old, new in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/labels.example.org.pem": str(folder / "certificate.pem"),
        "/etc/ssl/private/labels.example.org.key": str(folder / "key.pem"),
        "http://127.0.0.1:8000": url,
    }.items():
        assert old in server
        server = server.replace(old, new)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{places}{server}}}\n"
    )
    with (folder / "log").open("w") as log:
        nginx = subprocess.Popen([NGINX, "-c", str(configuration)], stderr=log, env={"PATH": os.environ["PATH"]})
    trust = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
    try:
        client = httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=trust, headers={"Host": "labels.example.org"}, trust_env=False
        )
        with client:
            for _ in range(200):
                assert nginx.poll() is None, (folder / "log").read_text()
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield client
    finally:
        nginx.terminate()
        nginx.wait(20)


def test_labels_and_log_pass_nginx_and_metrics_do_not(proxied):
    """A run opened, labels asked, the log exported through TLS under the proxy's name; /metrics stays inside."""
    client, token = proxied
    opened = client.post("/v1/runs", json={"name": "far"}, headers={"Authorization": f"Bearer {token}"}).json()
    run = {"Authorization": f"Bearer {opened['token']}"}
    assert len(client.post("/v1/labels:query", json={"ids": [*range(100)]}, headers=run).json()["labels"]) == 100
    assert opened["run_id"] in client.get("/v1/log/export.ndjson").text
    assert client.get("/").status_code == 200
    assert client.get("/metrics").status_code == 403


def test_the_service_is_shown_under_a_path(tmp_path):
    """The page's change for a path: labels, pages and their links lie under it, and nothing beside it."""
    data = make_idx_dataset(tmp_path / "data", pool=100)
    settings = {"root_path": "/labels", "allowed_hosts": "labels.example.org"}
    with (
        service_process.run_process(data, tmp_path, **settings) as (_, url),
        run_nginx(url, tmp_path, under_a_path=True) as client,
    ):
        assert client.get("/labels/label/7").json()["id"] == 7
        page = client.get("/labels/")
        links = re.findall(r"(?:href|src)=\"(/[^\"]*)", page.text)
        assert page.status_code == 200 and links and all(link.startswith("/labels/") for link in links)
        answers = {link: client.get(html.unescape(link)).status_code for link in set(links)}
        assert set(answers.values()) == {200}, answers
        assert client.get("/label/7").status_code == 404
        unknown = client.get("/labels/label/100").json()
        assert unknown["type"] == "/labels/errors#unknown-id"
        assert 'id="unknown-id"' in client.get(unknown["type"].partition("#")[0]).text
        too_large = httpx.post(f"{url}/v1/runs", content=b"x" * 2_000_000).json()
        assert too_large["type"] == "/labels/errors#body-too-large"
        assert httpx.get(url, headers={"X": "x" * 70_000}).json()["type"] == "/labels/errors#headers-too-large"


def test_new_entries_pass_nginx_as_they_come(proxied):
    """The live pages' stream: each size arrives while the stream is open, within seconds of its entry."""
    client, _ = proxied
    size = int(client.get("/v1/log/checkpoint").text.splitlines()[1])
    with client.stream("GET", "/v1/log/events", params={"seen": size}, timeout=10) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "retry: 5000"
        for number in range(3):
            asked_s = time.monotonic()
            client.get(f"/label/{number}")
            told = next(line for line in lines if line.startswith("data: "))
            assert told == f'data: {{"size":{size + number + 1}}}'
            assert time.monotonic() - asked_s < 5


def test_another_name_is_refused_behind_nginx_too(proxied):
    """The twin: the service reads the name that the client used."""
    client, _ = proxied
    assert client.get("/v1/dataset", headers={"Host": "evil.example.com"}).status_code == 421
