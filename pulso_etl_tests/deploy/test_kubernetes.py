"""The Kubernetes files: manifests against Kubernetes' own schemas, the Helm values as far as they are plain Kubernetes."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pulso_etl_tests.deploy.files import DEPLOY, ROOT, SETTINGS, faults, load

VALUES = load("kubernetes/values.yaml")
MANIFESTS = [
    manifest
    for name in ("api.yaml", "network.yaml")
    for manifest in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text(encoding="utf-8"))
]
ACCOUNT, API, SERVICE = MANIFESTS[:3]
POLICIES = {one["metadata"]["name"]: one["spec"] for one in MANIFESTS if one["kind"] == "NetworkPolicy"}
WRITABLE = {"/tmp", "/opt/dagster/home/storage"}
"""Where Dagster and the API write."""
POD = API["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
TOP_LEVEL = {
    "additionalInstanceConfig",
    "concurrency",
    "dagster-user-deployments",
    "dagsterDaemon",
    "dagsterWebserver",
    "generatePostgresqlPasswordSecret",
    "global",
    "ingress",
    "postgresql",
    "pythonLogs",
    "rabbitmq",
    "redis",
    "runLauncher",
    "telemetry",
}
"""What the chart reads, of what values.yaml may set."""


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_takes_a_manifest(manifest: dict[str, Any]) -> None:
    validate(manifest)


def test_the_api_is_probed_on_routes_that_need_no_token_and_is_reached_by_its_service() -> None:
    probes = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/api/v1/etl/health",
        "readinessProbe": "/api/v1/etl/health?live=true",
        "livenessProbe": "/api/v1/etl/health?live=true",
    }
    (port,) = CONTAINER["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]} == {SERVICE["spec"]["ports"][0]["targetPort"]}
    assert str(port["containerPort"]) in CONTAINER["command"]
    assert SERVICE["spec"]["selector"].items() <= API["spec"]["template"]["metadata"]["labels"].items()


def test_what_the_api_is_given_is_known_and_its_command_exists() -> None:
    assert {one["name"] for one in CONTAINER["env"]} <= SETTINGS | {"DAGSTER_PG_PASSWORD"}
    assert list(faults(CONTAINER["command"])) == []
    code_server = VALUES["dagster-user-deployments"]["deployments"][0]["dagsterApiGrpcArgs"]
    assert list(faults(["dagster", "api", "grpc", *code_server])) == []


def test_manifests_and_values_speak_of_the_same_things() -> None:
    release = "pulso"
    web = VALUES["dagsterWebserver"]
    webserver = f"http://{release}-{web['nameOverride']}:{web['service']['port']}/graphql"
    assert web["readinessProbe"]["httpGet"]["port"] == web["service"]["port"]
    assert {one["name"]: one.get("value") for one in CONTAINER["env"]}["DAGSTER_GRAPHQL_URL"] == webserver
    image = VALUES["dagsterDaemon"]["image"]
    assert CONTAINER["image"] == f"{image['repository']}:{image['tag']}"
    deployment = VALUES["dagster-user-deployments"]["deployments"][0]
    assert deployment["image"] == VALUES["dagsterWebserver"]["image"] == image
    assert VALUES["dagsterWebserver"]["workspace"]["servers"] == [
        {"host": deployment["name"], "port": deployment["port"], "name": "pulso_etl.definitions"}
    ]
    launcher = VALUES["runLauncher"]["config"]["customRunLauncher"]["config"]
    secrets = {*(one["name"] for one in deployment["envSecrets"]), *launcher["env_secrets"]}
    doors = {one["name"] for one in web["envSecrets"]}
    assert secrets | doors == {one["secretRef"]["name"] for one in CONTAINER["envFrom"]}
    assert {one["name"]: one["value"] for one in web["env"]} == {"DAGSTER_GRAPHQL_URL": webserver}
    assert POD["volumes"][0]["configMap"]["name"] == f"{release}-dagster-instance"
    version = re.search(r"^dagster==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"--version {version[1]} " in (DEPLOY / "kubernetes" / "values.yaml").read_text(encoding="utf-8")


def test_the_values_that_are_plain_kubernetes_fit() -> None:
    assert set(VALUES) <= TOP_LEVEL
    parts = [VALUES["dagsterWebserver"], VALUES["dagsterDaemon"], VALUES["dagster-user-deployments"]["deployments"][0]]
    for part in parts:
        pod = {
            "securityContext": part["podSecurityContext"],
            "containers": [
                {"name": "one", "image": "one", "resources": part["resources"], "securityContext": part["securityContext"]}
            ],
        }
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod})
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_only_the_api_may_reach_the_webserver() -> None:
    (rule,) = POLICIES["pulso-webserver"]["ingress"]
    (source,) = rule["from"]
    assert source["podSelector"]["matchLabels"].items() <= API["spec"]["template"]["metadata"]["labels"].items()
    assert VALUES["ingress"] == {"enabled": False}


def test_the_api_has_an_account_of_its_own_without_a_token() -> None:
    assert ACCOUNT["metadata"]["name"] == POD["serviceAccountName"] == "pulso-api"
    assert ACCOUNT["automountServiceAccountToken"] is POD["automountServiceAccountToken"] is False
    # It has no role. The chart's own account is another one.
    assert not [one for one in MANIFESTS if "Role" in one["kind"]]


def test_no_process_writes_to_its_image() -> None:
    parts = [VALUES["dagsterWebserver"], VALUES["dagsterDaemon"], VALUES["dagster-user-deployments"]["deployments"][0]]
    for context, mounts, volumes in [
        (CONTAINER["securityContext"], CONTAINER["volumeMounts"], POD["volumes"]),
        *((part["securityContext"], part["volumeMounts"], part["volumes"]) for part in parts),
    ]:
        assert context["readOnlyRootFilesystem"] is True
        empty = {volume["name"] for volume in volumes if "emptyDir" in volume}
        assert {mount["mountPath"] for mount in mounts if mount["name"] in empty} == WRITABLE


def test_what_no_policy_names_is_closed_in_both_directions() -> None:
    everything = POLICIES["pulso-all"]
    assert everything["podSelector"] == {}
    assert everything["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everything
    ports = {port["port"] for rule in everything["egress"] for port in rule.get("ports", ())}
    assert ports == {53, 80, 443, 465, 587, 988, 5432, 6443}
    # Only pods of the namespace are open on every port.
    assert [rule["to"] for rule in everything["egress"] if "ports" not in rule] == [[{"podSelector": {}}]]
    assert POLICIES["pulso-api"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": CONTAINER["ports"][0]["containerPort"]}]}]
