"""The Kubernetes example: its settings exist, its pods have no privileges, and nothing starts without its Secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from label_service.errors import RegistrationTokenRefused
from label_service.ledger.tokens import read_registration_token
from label_service.settings import Settings
from tests.docs import ROOT
from trainer.options import RunOptions

DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "examples/kubernetes/labelmeter.yaml").read_text()))
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]["spec"]
    for document in DOCUMENTS
    if document["kind"] in ("Deployment", "Job")
}
# Read by the container's script, which gives the trainer the token itself.
BY_SCRIPT = {"registration_token_file"}


def values(pod: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a pod's one container; what comes from the Secret is a PostgreSQL URL."""
    (container,) = pod["containers"]
    return {one["name"]: one.get("value", "postgresql+psycopg://label@db/label") for one in container["env"]}


@pytest.mark.parametrize(("name", "prefix"), [("label-service", "LABEL_SERVICE_"), ("trainer-seed1", "TRAINER_")])
def test_every_variable_is_an_option_with_a_value_that_it_takes(
    name: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is misspelt would be an error at the start, in the cluster."""
    options: Any = Settings if prefix == "LABEL_SERVICE_" else RunOptions
    for variable, value in values(PODS[name]).items():
        option = variable.removeprefix(prefix).lower()
        if prefix == "TRAINER_" and option in BY_SCRIPT:
            continue
        assert option in options.model_fields, variable
        monkeypatch.setenv(variable, value)
    read = options()
    assert read.database_url.startswith("postgresql") if options is Settings else read.profile == "gpu"


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_privileges_and_know_nothing_of_the_cluster(name: str) -> None:
    """What Kubernetes calls `restricted`, a read-only root, no account, finite memory."""
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_each_pod_reaches_what_it_needs_and_no_more() -> None:
    """The service reaches names and PostgreSQL; the trainer names and the service."""
    policies = {one["metadata"]["name"]: one["spec"] for one in DOCUMENTS if one["kind"] == "NetworkPolicy"}
    ports = {name: [rule["ports"][0]["port"] for rule in policy["egress"]] for name, policy in policies.items()}
    assert ports == {"label-service": [53, 5432], "trainer": [53, 8000]}
    assert all(set(policy["policyTypes"]) == {"Ingress", "Egress"} for policy in policies.values())
    assert "ingress" not in policies["trainer"]


def test_without_its_secret_the_service_does_not_start(tmp_path: Path) -> None:
    """The repository has no value of it, and an empty token is refused."""
    (secret,) = [document for document in DOCUMENTS if document["kind"] == "Secret"]
    assert set(secret["stringData"].values()) == {""}
    token = tmp_path / "token"
    token.touch()
    with pytest.raises(RegistrationTokenRefused):
        read_registration_token(token)
