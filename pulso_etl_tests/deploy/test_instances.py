"""The variants of `dagster.yaml`: each is an instance configuration, with the limits of the top-level one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_postgres import DagsterPostgresStorage

from pulso_etl.instance.celery_launcher import CancelingCeleryRunLauncher
from pulso_etl.instance.coordinator import PulsoRunCoordinator
from pulso_etl_tests.deploy.files import ROOT, load
from pulso_etl_tests.serving import serving

Config = dict[str, Any]
TOP: Config = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
ENVIRONMENT = {
    "DAGSTER_POSTGRES_URL": "postgresql://pulso@127.0.0.1:9/dagster",
    "DAGSTER_PG_PASSWORD": "secret",
    "CELERY_BROKER_URL": "redis://127.0.0.1:9/0",
    "CELERY_RESULT_BACKEND": "redis://127.0.0.1:9/0",
    "POD_NAMESPACE": "pulso",
}


IMAGE = "registry.example.com/pulso-etl:0.1.0"


def chart_instance(values: Config) -> Config:
    """dagster.yaml as Dagster's Helm chart writes it from the values."""
    daemon, launcher = values["dagsterDaemon"], values["runLauncher"]["config"]["customRunLauncher"]
    postgres = {
        "postgres_db": {
            "username": values["postgresql"]["postgresqlUsername"],
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "hostname": values["postgresql"]["postgresqlHost"],
            "db_name": values["postgresql"]["postgresqlDatabase"],
            "port": values["postgresql"]["service"]["port"],
        }
    }
    pools, runs = values["concurrency"]["pools"], values["concurrency"]["runs"]
    monitoring, retries = daemon["runMonitoring"], daemon["runRetries"]
    return {
        "storage": {"postgres": postgres},
        "run_coordinator": daemon["runCoordinator"]["config"]["customRunCoordinator"],
        "run_launcher": launcher,
        "concurrency": {
            "pools": {"default_limit": pools["defaultLimit"], "granularity": pools["granularity"]},
            "runs": {
                "max_concurrent_runs": runs["maxConcurrentRuns"],
                "tag_concurrency_limits": runs["tagConcurrencyLimits"],
            },
        },
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "max_runtime_seconds": monitoring["maxRuntimeSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "run_retries": {
            "enabled": retries["enabled"],
            "max_retries": retries["maxRetries"],
            "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
        },
        "python_logs": {
            "managed_python_loggers": values["pythonLogs"]["managedPythonLoggers"],
            "python_log_level": values["pythonLogs"]["pythonLogLevel"],
        },
        "telemetry": {"enabled": values["telemetry"]["enabled"]},
        **values["additionalInstanceConfig"],
    }


VARIANTS: dict[str, Config] = {
    "celery": load("dagster.celery.yaml"),
    "kubernetes": load("dagster.kubernetes.yaml"),
    "chart": chart_instance(load("kubernetes/values.yaml")),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def instance_ref(config: Config, home: Path) -> InstanceRef:
    (home / "dagster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return InstanceRef.from_dir(str(home))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_in_its_run_launcher_alone(name: str) -> None:
    same = {key: value for key, value in VARIANTS[name].items() if key != "run_launcher"}
    expected = dict(TOP)
    if name != "celery":
        expected["run_monitoring"] = TOP["run_monitoring"] | {"start_timeout_seconds": 300}
    if name == "chart":
        # Resuming is off on one machine, too; PostgreSQL is described in parts, and the chart knows no storage but Dagster's own.
        expected["run_monitoring"]["max_resume_run_attempts"] = 0
        same["storage"] = TOP["storage"]
    assert same == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_dagster_takes_a_variant_with_the_limits_of_the_top_level_one(name: str, tmp_path: Path) -> None:
    kind, given = next(iter(VARIANTS[name]["storage"].items()))
    storage = process_config(DagsterPostgresStorage.config_type(), given if kind == "postgres" else given["config"])
    assert storage.success, storage.errors
    here = {"storage": {"sqlite": {"base_dir": str(tmp_path)}}}
    limits = []
    for config in (TOP, VARIANTS[name]):
        with dg.DagsterInstance.from_ref(instance_ref(config | here, tmp_path)) as instance:
            queue = instance.get_concurrency_config().run_queue_config
            assert queue is not None
            limits.append((queue.max_concurrent_runs, queue.tag_concurrency_limits, instance.get_concurrency_config().pool_config))
            assert isinstance(instance.run_coordinator, PulsoRunCoordinator)
            assert (queue.max_user_code_failure_retries, queue.user_code_failure_retry_delay) == (60, 10)
            assert instance.freshness_enabled
    assert limits[0] == limits[1]


def test_the_celery_variant_takes_broker_and_results_from_the_environment(tmp_path: Path) -> None:
    launcher = instance_ref(VARIANTS["celery"], tmp_path).run_launcher
    assert isinstance(launcher, CancelingCeleryRunLauncher)
    assert (launcher.broker, launcher.backend) == (ENVIRONMENT["CELERY_BROKER_URL"], ENVIRONMENT["CELERY_RESULT_BACKEND"])


@contextmanager
def kubernetes_api(home: Path) -> Iterator[tuple[Path, list[Config]]]:
    """A server that accepts any object and keeps it. Gives its kubeconfig and the objects."""
    given: list[Config] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            given.append(json.loads(body))
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
            "users": [{"name": "nobody", "user": {}}],
            "current-context": "here",
        }
        file = home / "kubeconfig"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        yield file, given


def launch(name: str, home: Path, tags: dict[str, str]) -> list[Config]:
    """Launches a run with the tags. Returns the objects that Kubernetes got. Raises the errors of the launcher."""
    with kubernetes_api(home) as (kubeconfig, given):
        config = json.loads(json.dumps(VARIANTS[name]))
        config["storage"] = {"sqlite": {"base_dir": str(home)}}
        # Outside of a cluster, on plain HTTP.
        config["run_launcher"]["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
        with dg.DagsterInstance.from_ref(instance_ref(config, home)) as instance:
            origin = JobPythonOrigin(
                "refresh_dashboard_data",
                RepositoryPythonOrigin(
                    executable_path="python",
                    code_pointer=ModuleCodePointer("pulso_etl.definitions", "defs"),
                    container_image=IMAGE,
                    entry_point=["dagster"],
                ),
            )
            run = instance.create_run_for_job(
                dg.job(name="refresh_dashboard_data")(lambda: None), job_code_origin=origin, tags=tags
            )
            instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    return given


@pytest.mark.parametrize("name", ["kubernetes", "chart"])
@pytest.mark.parametrize(
    "pod",
    [
        {"container_config": {"image": "elsewhere", "security_context": {"privileged": True}}},
        {"container_config": {"env_from": [{"secret_ref": {"name": "another"}}]}},
        {"pod_spec_config": {"service_account_name": "admin", "host_network": True}},
        {"job_spec_config": {"ttl_seconds_after_finished": 1}},
    ],
    ids=str,
)
def test_no_tag_says_what_the_pod_of_a_run_is(name: str, pod: Config, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="violated the allowed list"):
        launch(name, tmp_path, {"dagster-k8s/config": json.dumps(pod)})


@pytest.mark.parametrize("name", ["kubernetes", "chart"])
def test_a_run_becomes_a_job_that_kubernetes_takes(name: str, tmp_path: Path) -> None:
    (job,) = launch(name, tmp_path, {"pulso_etl/source": "bigquery"})
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert {"secretRef": {"name": "pulso-etl"}} in container["envFrom"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    written = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in empty}
    assert written == {"/tmp", "/opt/dagster/home/storage"}
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
