"""The Kubernetes files: manifests against Kubernetes' own schemas, the Helm values as far as they are plain Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pulso_etl_tests.deploy.files import DEPLOY, ROOT, SETTINGS, faults, load

VALUES = load("kubernetes/values.yaml")
MANIFESTS = [
    manifest
    for name in ("api.yaml", "network.yaml", "ingress.yaml", "disruption.yaml")
    for manifest in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text(encoding="utf-8"))
]
ACCOUNT, API, SERVICE = MANIFESTS[:3]
POLICIES = {one["metadata"]["name"]: one["spec"] for one in MANIFESTS if one["kind"] == "NetworkPolicy"}
WRITABLE = {"/tmp", "/opt/dagster/home/storage"}
"""Where Dagster and the API write."""
POD = API["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
BUDGETS = {one["metadata"]["name"]: one["spec"] for one in MANIFESTS if one["kind"] == "PodDisruptionBudget"}
(INGRESS,) = [one["spec"] for one in MANIFESTS if one["kind"] == "Ingress"]
REGISTRY = "registry.example.com/"
TOP_LEVEL = {
    "additionalInstanceConfig",
    "busybox",
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
    "serviceAccount",
    "telemetry",
}
"""What the chart reads, of what values.yaml may set."""
POD_KEYS = (
    "affinity annotations env envConfigMaps envSecrets image labels livenessProbe nodeSelector podSecurityContext readinessProbe "
    "resources schedulerName securityContext startupProbe tolerations volumeMounts volumes"
)
PROBE = "enabled exec httpGet initialDelaySeconds periodSeconds timeoutSeconds successThreshold failureThreshold"
CHART = {
    "dagsterWebserver": f"{POD_KEYS} dbPoolRecycle dbStatementTimeout deploymentLabels enableReadOnly logLevel nameOverride "
    "pathPrefix replicaCount service workspace",
    "dagsterWebserver.readinessProbe": PROBE,
    "dagsterWebserver.service": "type port annotations",
    "dagsterWebserver.workspace": "enabled servers externalConfigmap",
    "dagsterDaemon": f"{POD_KEYS} deploymentLabels enabled heartbeatTolerance runCoordinator runMonitoring runRetries schedules "
    "sensors",
    "dagsterDaemon.livenessProbe": PROBE,
    "dagsterDaemon.startupProbe": PROBE,
    "dagsterDaemon.runCoordinator": "enabled type config",
    "dagster-user-deployments": "enabled enableSubchart imagePullSecrets deployments serviceAccount",
    "dagster-user-deployments.deployments": f"{POD_KEYS} codeServerArgs dagsterApiGrpcArgs includeConfigInLaunchedRuns name port",
    "dagster-user-deployments.deployments.livenessProbe": PROBE,
    "dagster-user-deployments.deployments.readinessProbe": PROBE,
    "dagster-user-deployments.deployments.startupProbe": PROBE,
    "dagster-user-deployments.deployments.includeConfigInLaunchedRuns": "enabled",
    "dagster-user-deployments.serviceAccount": "create name annotations",
    "serviceAccount": "create name annotations",
    "postgresql": "image enabled postgresqlHost postgresqlUsername postgresqlPassword postgresqlDatabase postgresqlParams "
    "postgresqlScheme service",
    "busybox": "image",
    "global": "postgresqlSecretName dagsterHome serviceAccountName celeryConfigSecretName",
    "telemetry": "enabled",
}
"""What the chart takes, by section, as far as values.yaml uses it. Source: helm/dagster/values.schema.json and the values of its
subchart in the repository dagster-io/dagster (Apache License 2.0), as of the commit 835892b45aaa."""
IMAGE = {"repository", "tag", "pullPolicy"}


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


def sections(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of the values with its path; entries of a list have the list's path."""
    if isinstance(value, dict):
        yield path, value
        for key, one in value.items():
            yield from sections(one, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for one in value:
            yield from sections(one, path)


def test_the_chart_knows_every_value() -> None:
    found = dict(sections(VALUES))
    assert CHART.keys() <= found.keys()
    unknown = {path: left for path, keys in CHART.items() if (left := found[path].keys() - {*keys.split()})}
    assert unknown == {}
    images = [one for path, one in sections(VALUES) if path.rpartition(".")[2] == "image"]
    assert {frozenset(one) for one in images} == {frozenset(IMAGE)}


def test_every_image_comes_from_one_registry() -> None:
    images = [one["repository"] for path, one in sections(VALUES) if path.rpartition(".")[2] == "image"]
    assert len(images) == 5
    assert [image for image in [*images, CONTAINER["image"]] if not image.startswith(REGISTRY)] == []


def test_every_process_is_probed_for_life() -> None:
    daemon, code_server = VALUES["dagsterDaemon"], VALUES["dagster-user-deployments"]["deployments"][0]
    assert list(faults(daemon["livenessProbe"]["exec"]["command"])) == []
    for part in (daemon, code_server):
        assert part["startupProbe"]["enabled"] is True
        for probe in ("startupProbe", "livenessProbe"):
            # A probe must end before the next one begins.
            assert part[probe]["timeoutSeconds"] <= part[probe]["periodSeconds"]
            validate(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": "one"},
                    "spec": {
                        "containers": [
                            {
                                "name": "one",
                                "image": "one",
                                "livenessProbe": {"exec": {"command": ["true"]}}
                                | {key: value for key, value in part[probe].items() if key != "enabled"},
                            }
                        ]
                    },
                }
            )


def test_the_accounts_can_carry_an_identity() -> None:
    assert (
        VALUES["serviceAccount"]["name"] == VALUES["runLauncher"]["config"]["customRunLauncher"]["config"]["service_account_name"]
    )
    accounts = [VALUES["serviceAccount"], VALUES["dagster-user-deployments"]["serviceAccount"], ACCOUNT["metadata"]]
    assert [account["annotations"] for account in accounts] == [{}, {}, {}]
    assert len({account["name"] for account in accounts}) == 3


def test_runs_are_not_evicted_and_the_ingress_leads_to_the_api() -> None:
    # The launcher gives this label to the pods of runs.
    assert BUDGETS["pulso-runs"]["selector"]["matchLabels"] == {"app.kubernetes.io/component": "run_worker"}
    assert "maxUnavailable" not in BUDGETS["pulso-runs"]
    labels = API["spec"]["template"]["metadata"]["labels"]
    assert BUDGETS["pulso-api"]["selector"]["matchLabels"].items() <= labels.items()
    ((path,),) = [rule["http"]["paths"] for rule in INGRESS["rules"]]
    backend = path["backend"]["service"]
    assert (backend["name"], backend["port"]["name"]) == (SERVICE["metadata"]["name"], SERVICE["spec"]["ports"][0]["name"])
    assert {host for one in INGRESS["tls"] for host in one["hosts"]} == {rule["host"] for rule in INGRESS["rules"]}
