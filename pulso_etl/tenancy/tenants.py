"""Tenants: organisations that share a deployment. The file of TENANTS_FILE declares them.

A tenant has its own settings and table specs, and everything that uses these is built once for each tenant. Without a file there is
one such pair, the deployment's own, and nothing carries a tenant's name.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from pulso_etl.settings import AccessSettings, Owner, Settings
from pulso_etl.sync.errors import PlanError, SettingsError
from pulso_etl.sync.postgres.roles import as_role
from pulso_etl.sync.spec import IDENTIFIER, PARTS, TENANT, TableSpec, in_parts
from pulso_etl.table_files import StrictLoader
from pulso_etl.tables import TABLES

OVERRIDABLE = (
    "refresh_every",
    "refresh_on_change",
    "least_interval",
    "settling_time",
    "lookback_days",
    "timeout",
    "priority",
    "batch_rows",
    "chunk_days",
    "minimum_records",
    "minimum_kept_share",
    "volume_factor",
    "reconcile_days",
    "retention_months",
    "on_reject",
    "maximum_quarantined_share",
    "alert_quarantined_share",
)
"""The fields of a table's declaration that a tenant may change."""
EXAMPLES = {
    "tenants": "[{name: acme, database_schema: acme}]",
    "name": "acme",
    "database_schema": "acme",
    "database_role": "pulso_acme",
    "database_url_env": "ACME_DATABASE_URL",
    "alert_urls_env": "ACME_ALERT_URLS",
    "bigquery_project_id": "acme-analytics",
    "bigquery_location": "US",
    "bigquery_dataset": "BI_ACME",
    "bigquery_view_prefix": "bi_acme",
    "bigquery_agents_table": "agents",
    "bigquery_maximum_bytes_billed": "10000000000",
    "bigquery_daily_budget_bytes": "50000000000",
    "bigquery_daily_budget_usd": "2.5",
    "bigquery_monthly_budget_bytes": "1000000000000",
    "bigquery_monthly_budget_usd": "40",
    "initial_window_days": "90",
    "retry_wait_seconds": "60",
    "retry_wait_maximum_seconds": "3600",
    "retry_limit": "5",
    "timezone": "America/Santiago",
    "change_aware": "true",
    "tables": '{operation_data: {refresh_every: "00:30:00", lookback_days: 3}}',
    "enabled": "false",
    "refresh_every": '"00:30:00"',
    "refresh_on_change": "false",
    "least_interval": '"00:10:00"',
    "settling_time": '"00:02:00"',
    "lookback_days": "3",
    "timeout": '"00:30:00"',
    "priority": "1",
    "batch_rows": "10000",
    "chunk_days": "92",
    "minimum_records": "100",
    "minimum_kept_share": "0.5",
    "volume_factor": "2",
    "reconcile_days": "35",
    "retention_months": "24",
    "on_reject": "quarantine",
    "maximum_quarantined_share": "0.05",
    "alert_quarantined_share": "0.01",
}
"""An example of each field of the file, as YAML, for error messages."""
ROUTES = "/tenants"
"""The path below which the HTTP API has the routes of each tenant."""

Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
"""The name of an environment variable that holds a secret. The file itself holds no secret."""


class Tenant(BaseModel):
    """One tenant of the file. Fields that are left out come from the deployment's settings, except the schema.

    `database_url_env`: the variable that holds the URL of the tenant's own login; the default is NAME_DATABASE_URL.
    `database_role`: the role as which a login works for the tenant. Without a variable it is the login of DATABASE_URL, and
    tenants share it (see `sharing`). `alert_urls_env`: the variable that holds the channels of its alerts. `tables`: by table, the
    fields of OVERRIDABLE, and `enabled: false` for a table that the tenant does not have. All other fields are settings of the same
    names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=TENANT, max_length=31)]
    database_schema: str
    database_role: Annotated[str, Field(pattern=IDENTIFIER)] | None = None
    database_url_env: Variable | None = None
    alert_urls_env: Variable | None = None
    bigquery_project_id: str | None = None
    bigquery_location: str | None = None
    bigquery_dataset: str | None = None
    bigquery_view_prefix: str | None = None
    bigquery_agents_table: str | None = None
    bigquery_maximum_bytes_billed: int | None = None
    bigquery_daily_budget_bytes: int | None = None
    bigquery_daily_budget_usd: float | None = None
    bigquery_monthly_budget_bytes: int | None = None
    bigquery_monthly_budget_usd: float | None = None
    timezone: str | None = None
    initial_window_days: int | None = None
    retry_wait_seconds: int | None = None
    retry_wait_maximum_seconds: int | None = None
    retry_limit: int | None = None
    change_aware: bool | None = None
    tables: dict[str, dict[str, Any]] = {}

    def settings(self, shared: Settings) -> Settings:
        """The deployment's settings, changed by the tenant's. Raises ValidationError, or ValueError for a variable."""
        own = self.model_dump(exclude={"name", "database_role", "database_url_env", "alert_urls_env", "tables"}, exclude_none=True)
        if self.database_url_env or not self.database_role:
            own["database_url"] = _variable("database_url_env", self.database_url_env or f"{self.name.upper()}_DATABASE_URL")
        if self.alert_urls_env:
            own["alert_urls"] = _variable("alert_urls_env", self.alert_urls_env)
        found = Settings(**{name: getattr(shared, name) for name in Settings.model_fields} | own)
        role = self.database_role or ""
        return found.owned_by(
            Owner(self.name, role),
            database_url=SecretStr(as_role(found.database_url.get_secret_value(), role)),
        )

    def specs(self, tables: Mapping[str, TableSpec], timezone: str) -> dict[str, TableSpec]:
        """The tenant's tables, with the tenant's changes. Its days are those of the time zone. Raises ValueError."""
        for table, given in self.tables.items():
            if table not in tables:
                raise ValueError(f"tables.{table}: unknown table; known are {', '.join(tables)}{_example('tables')}")
            if unknown := given.keys() - {"enabled", *OVERRIDABLE}:
                known = f"these can: enabled, {', '.join(OVERRIDABLE)}{_example('tables')}"
                raise ValueError(f"tables.{table}.{min(unknown)}: can't be set here; {known}")
            if not isinstance(given.get("enabled", True), bool):
                raise ValueError(f"tables.{table}.enabled: is neither true nor false{_example('enabled')}")
        found = {}
        for table, spec in tables.items():
            own = dict(self.tables.get(table, {}))
            if own.pop("enabled", True):
                fields = {name: getattr(spec, name) for name in TableSpec.model_fields}
                # The file names the fields without their parts.
                fields |= {part: getattr(spec, part).model_dump() | given for part, given in in_parts(own).items()}
                fields |= {"tenant": self.name, "timezone": timezone}
                try:
                    found[table] = TableSpec.model_validate(fields)
                except ValidationError as error:
                    raise ValueError("; ".join(f"tables.{table}.{fault}" for fault in _faults(error))) from None
        if not found:
            raise ValueError("tables: every table is turned off")
        return found


def _variable(field: str, name: str) -> SecretStr:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"{field}: the environment variable {name} is not set")
    return SecretStr(value)


def _faults(error: ValidationError) -> Iterator[str]:
    """Each fault with its field and an example. For an unknown field it lists the known ones."""
    for fault in error.errors(include_input=False):
        where = ".".join(str(name) for name in fault["loc"] if name not in PARTS)
        field = next((part for part in reversed(fault["loc"]) if part in EXAMPLES), "tenants")
        match fault["type"]:
            case "missing":
                text = "is not given"
            case "extra_forbidden":
                known = _File if len(fault["loc"]) == 1 else Tenant
                text, field = f"there is no such field; known are {', '.join(known.model_fields)}", "tenants"
            case _:
                text = fault["msg"].removeprefix("Value error, ").replace(" or instance of _File", "")
        text += _example(str(field)) if fault["type"] != "value_error" else ""
        yield f"{where}: {text}" if where else text


def _example(field: str) -> str:
    return f"; for example {field}: {EXAMPLES[field]}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tenants: Annotated[list[Tenant], Field(min_length=1)]

    @model_validator(mode="after")
    def _apart(self) -> _File:
        for field in ("name", "database_schema", "database_role", "database_url_env"):
            named = Counter(value for tenant in self.tenants if (value := getattr(tenant, field)) is not None)
            for value, times in named.items():
                if times > 1:
                    owners = [tenant.name for tenant in self.tenants if getattr(tenant, field) == value]
                    raise ValueError(f"tenants {', '.join(owners)}: {field}: {value} is given {times} times")
        return self


def read_tenants(path: Path) -> list[Tenant]:
    """The tenants that the file declares. The suffix `.toml` means TOML; otherwise the file is YAML.

    Raises SettingsError, one line that names tenant and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"TENANTS_FILE: {path} can't be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    try:
        given = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, StrictLoader)  # noqa: S506 - it is a SafeLoader
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise SettingsError(f"{path}: {problem or 'is not YAML'}" + (f" (line {mark.line + 1})" if mark else "")) from None
    try:
        return _File.model_validate(given).tenants
    except ValidationError as error:
        faults = "; ".join(_named(fault, given) for fault in _faults(error))
        raise SettingsError(f"{path}: {faults}") from None


def _named(fault: str, given: Any) -> str:
    """The fault, with the tenant's name instead of its number."""
    found = re.match(r"tenants\.(\d+)\.?", fault)
    if found is None:
        return fault
    tenant = given["tenants"][int(found[1])]
    name = tenant.get("name") if isinstance(tenant, dict) else None
    return f"tenant {name or int(found[1]) + 1}: {fault[found.end() :].lstrip(': ')}"


class Deployed(NamedTuple):
    """The settings and tables of one tenant's part of a deployment. Without tenants, of the whole deployment."""

    settings: Settings
    tables: Mapping[str, TableSpec]

    @property
    def tenant(self) -> str:
        return self.settings.owner.tenant


def deployed(settings: Settings, tables: Mapping[str, TableSpec] = TABLES) -> list[Deployed]:
    """The parts of the deployment: one for each tenant of TENANTS_FILE, or the only part. Raises SettingsError."""
    if settings.tenants_file is None:
        return [Deployed(settings, {name: spec.in_zone(settings.timezone) for name, spec in tables.items()})]
    found = []
    for tenant in read_tenants(settings.tenants_file):
        try:
            own = tenant.settings(settings)
            found.append(Deployed(own, tenant.specs(tables, own.timezone)))
        except ValidationError as error:
            raise SettingsError(f"{settings.tenants_file}: tenant {tenant.name}: {'; '.join(_faults(error))}") from None
        except ValueError as error:
            raise SettingsError(f"{settings.tenants_file}: tenant {tenant.name}: {error}") from None
    return found


def chosen(settings: Settings, tenant: str | None, tables: Mapping[str, TableSpec] = TABLES) -> Deployed:
    """The part of the deployment for a command. Raises PlanError if `tenant` is missing, unknown, or not expected."""
    parts = select(settings, tenant, tables)
    if len(parts) > 1 or (tenant is None and parts[0].tenant):
        raise PlanError(f"say whose tables: --tenant NAME; known are {', '.join(part.tenant for part in parts)}")
    return parts[0]


def select(settings: Settings, tenant: str | None, tables: Mapping[str, TableSpec] = TABLES) -> list[Deployed]:
    """The tenant's part of the deployment, or all parts without a name. Raises PlanError and SettingsError."""
    parts = deployed(settings, tables)
    if tenant is None:
        return parts
    check_tenant(settings, tenant)
    return [part for part in parts if part.tenant == tenant]


def check_tenant(settings: AccessSettings, tenant: str) -> None:
    """Raises PlanError if the deployment has no tenant of that name, and SettingsError."""
    if settings.tenants_file is None:
        raise PlanError("--tenant is for deployments with tenants, and TENANTS_FILE is not set")
    known = [one.name for one in read_tenants(settings.tenants_file)]
    if tenant not in known:
        raise PlanError(f"unknown tenant {tenant}; known are {', '.join(known)}")


def route(tenant: str) -> str:
    """The beginning of the paths of the tenant's HTTP routes; empty without tenants."""
    return f"{ROUTES}/{tenant}" if tenant else ""


def sharing(parts: Sequence[Deployed]) -> dict[str, list[str]]:
    """By tenant, the other tenants that use the same login of the same server."""
    logins = {part.tenant: _login(part) for part in parts}
    return {
        tenant: [other for other in logins if other != tenant and logins[other] == login]
        for tenant, login in logins.items()
        if list(logins.values()).count(login) > 1
    }


def risk(others: Sequence[str]) -> str:
    """The risk of a login that other tenants also use, in words."""
    return (
        f"its login works for {', '.join(others)} too: code that runs in its session, such as a trigger, reaches their rows; "
        "give each tenant a login of its own (database_url_env)"
    )


def works_as(part: Deployed) -> str:
    """The role of PostgreSQL that owns the tenant's tables."""
    return part.settings.owner.database_role or _login(part)[2]


def _login(part: Deployed) -> tuple[str, str, str]:
    found = conninfo_to_dict(part.settings.database_url.get_secret_value())
    return str(found.get("host")), str(found.get("port") or 5432), str(found.get("user"))


def grants(parts: Sequence[Deployed]) -> list[sql.Composed]:
    """The statements that an administrator runs once: a login or a role, and a schema for each tenant, closed to all others.

    The administrator sets the passwords. A role as which the login of DATABASE_URL works cannot log in itself.
    """
    # A function in the schema public could replace one of the server's own.
    statements = [sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC").format()]
    for part in parts:
        role = part.settings.owner.database_role
        connection = conninfo_to_dict(part.settings.database_url.get_secret_value())
        login, database = sql.Identifier(str(connection.get("user"))), sql.Identifier(str(connection.get("dbname")))
        schema, me = sql.Identifier(part.settings.database_schema), sql.Identifier(role) if role else login
        if role:
            statements += [
                sql.SQL("CREATE ROLE {} NOLOGIN").format(me),
                sql.SQL("GRANT {} TO {}").format(me, login),
                sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(database, me),
            ]
        else:
            statements += [
                sql.SQL("CREATE ROLE {} LOGIN").format(me),
                sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}").format(database, me),
            ]
        statements += [
            sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(schema, me),
            sql.SQL("REVOKE ALL ON SCHEMA {} FROM PUBLIC").format(schema),
        ]
    return statements


def passwords(parts: Sequence[Deployed]) -> list[str]:
    """The commands for psql after `grants`. They give each login a password that no file and no log holds."""
    logins = dict.fromkeys(_login(part)[2] for part in parts if not part.settings.owner.database_role)
    return [f"\\password {sql.Identifier(login).as_string()}" for login in logins]
