"""The systemd units: verified and rated by systemd itself where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pulso_etl_tests.deploy.files import DEPLOY, SETTINGS, faults

UNITS = DEPLOY / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
COMMON = (UNITS / "pulso-etl-.service.d" / "common.conf").read_text(encoding="utf-8")
BIN = "/opt/pulso-etl/bin/"
with_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def command(unit: Path) -> list[str]:
    (line,) = re.findall(r"^ExecStart=(.+)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return str(line).split()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units. Their programs are those of this environment, because systemd checks that the programs exist."""
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    for unit in folder.glob("*.service"):
        unit.write_text(unit.read_text(encoding="utf-8").replace(BIN, f"{Path(sys.executable).parent}/"), encoding="utf-8")
    return folder


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    units = [*folder.glob("*.service"), folder / "pulso-etl.target"]
    return subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("processes")
@with_systemd
def test_systemd_takes_the_units(installed: Path) -> None:
    ended = verify(installed)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.usefixtures("processes")
@with_systemd
def test_a_mistake_in_what_the_units_have_in_common_would_be_seen(installed: Path) -> None:
    common = installed / "pulso-etl-.service.d" / "common.conf"
    common.write_text(common.read_text(encoding="utf-8").replace("ProtectSystem=", "ProtectSytem="), encoding="utf-8")
    assert "ProtectSytem" in verify(installed).stderr


@pytest.mark.usefixtures("processes")
@with_systemd
@pytest.mark.parametrize("name", ["code", "webserver", "daemon", "api", "worker@1"])
def test_systemd_rates_a_service_as_hardened(name: str, installed: Path) -> None:
    unit = installed / f"pulso-etl-{name}.service"
    ended = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=20", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout[-300:]
    for line in ("NoNewPrivileges=", "ProtectSystem=", "User=/DynamicUser="):
        assert re.search(rf"^✓ {re.escape(line)}", ended.stdout, re.MULTILINE), line


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_what_a_unit_starts_exists(unit: Path) -> None:
    program, *rest = command(unit)
    assert program.startswith(BIN)
    assert list(faults([program.removeprefix(BIN), *rest])) == []


def test_the_units_start_together_under_a_user_of_their_own_and_come_back() -> None:
    target = (UNITS / "pulso-etl.target").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"^Wants=(.+)$", target, re.MULTILINE)
    assert set(wanted.split()) == {unit.name for unit in SERVICES if "@" not in unit.name}
    for unit in SERVICES:
        if "@" not in unit.name:
            assert "PartOf=pulso-etl.target" in unit.read_text(encoding="utf-8")
    for line in ("User=pulso-etl", "Restart=always", "EnvironmentFile=/etc/pulso-etl/environment", "ProtectSystem=strict"):
        assert f"\n{line}\n" in COMMON
    (given,) = re.findall(r"^Environment=(.+)$", COMMON, re.MULTILINE)
    assert {word.partition("=")[0] for word in given.split()} <= SETTINGS | {"PYTHONUNBUFFERED"}
