"""Every setting of Pulso ETL, read from the environment and checked at start.

One rule for all processes: a file `.env` in the working directory is loaded into the environment at start, and wins over
what stood there. Dagster's webserver, daemon, code servers and runs do that themselves; the command line does it with
`load_env_file`. Nothing else reads the file, so that a setting has one value for Pulso ETL, for `dagster.yaml` and for the
Google client alike. The embedded default (`pulso-etl run` and `dev`) reads no `.env`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import psycopg
from dotenv import load_dotenv
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, PrivateAttr, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pulso_etl.access.tokens import Keyring, Token, parse_tokens
from pulso_etl.alerts.channels import parse_channels
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.redaction import learn, learn_key_file

GIBIBYTE = 1024**3
NAME = r"^[A-Za-z0-9_-]+$"
Kind = TypeVar("Kind", bound="AccessSettings")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Owner:
    """Whose settings these are: a tenant, and as whom it works in PostgreSQL; both empty where there are no tenants."""

    tenant: str = ""
    database_role: str = ""


class AccessSettings(BaseSettings):
    """What is needed to let people in: all that the process of Dagster's UI reads. Fields are read as those of `Settings`."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    api_tokens: SecretStr = SecretStr("")
    """Who may use API and Dagster's UI, by `pulso-etl token`. Without any, neither starts."""
    api_tokens_file: Path | None = None
    """File of further entries of that kind, read anew whenever it changes: for tokens that come and go without a restart."""
    api_launch_limit: str = "30/minute"
    """How many runs one caller may launch: a number and a unit of time."""
    dagster_ui_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = "http://127.0.0.1:3000"
    """Where people reach Dagster's UI; alerts link to its runs."""
    dagster_graphql_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = "http://127.0.0.1:3000/graphql"
    """Where the API reaches the GraphQL of Dagster's webserver."""
    dagster_graphql_token: SecretStr | None = None
    """What the API tells Dagster's webserver to be let in: any 32 or more random characters, the same for both."""
    tenants_file: Path | None = None
    """File that declares the tenants, YAML or TOML; none: the deployment is a single organisation's."""

    @field_validator("api_tokens")
    @classmethod
    def _known_tokens(cls, value: SecretStr) -> SecretStr:
        parse_tokens(value.get_secret_value())
        return value

    @field_validator("api_tokens_file")
    @classmethod
    def _known_tokens_of_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            Keyring("", value)
        return value

    def keyring(self, which: Callable[[Sequence[Token]], Sequence[Token]]) -> Keyring:
        """The tokens that `which` chooses, as they are from now on."""
        return Keyring(self.api_tokens.get_secret_value(), self.api_tokens_file, which)

    @property
    def guarded(self) -> bool:
        """Whether tokens open API and UI, even where the file of tokens holds none for now."""
        return bool(parse_tokens(self.api_tokens.get_secret_value())) or self.api_tokens_file is not None

    @field_validator("api_launch_limit")
    @classmethod
    def _limit(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]{0,5}/(second|minute|hour|day)", value):
            raise ValueError("must read like 30/minute (second, minute, hour or day)")
        return value

    @field_validator("dagster_ui_url")
    @classmethod
    def _no_slash_at_the_end(cls, value: str) -> str:
        return value.rstrip("/")

    def model_post_init(self, context: Any) -> None:
        """What is secret of the settings is blanked from now on wherever something is recorded."""
        super().model_post_init(context)
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), SecretStr):
                learn(value.get_secret_value())
        if (key_file := getattr(self, "google_application_credentials", None)) is not None:
            learn_key_file(key_file)

    @field_validator("dagster_graphql_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("must have 32 characters or more: `openssl rand -hex 32` makes some")
        return value


class Settings(AccessSettings):
    """Settings of one deployment. Field `x_y` is read from the environment variable `X_Y`; an empty one counts as not set.

    Bytes are bytes, days are days of America/Lima, prices are US dollars.
    """

    database_url: SecretStr
    """`postgresql://user:password@host:port/database` of the dashboard's PostgreSQL (15 or newer)."""
    database_schema: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "public"
    """Schema of the five tables and of the watermarks."""
    lock_timeout_seconds: Annotated[int, Field(ge=1)] = 900
    """How long a load waits for another writer of its table."""
    work_mem_mb: Annotated[int, Field(ge=4)] = 256
    """PostgreSQL work_mem of a load's transaction, in MiB; its hash join may take twice that, its staged rows as much again."""

    bigquery_project_id: Annotated[str, Field(pattern=r"^[a-z0-9.:-]+$")] = "mibot-222814"
    """Project of the source tables, which also pays for the queries."""
    bigquery_location: Annotated[str, Field(pattern=NAME)] | None = None
    """Location of the dataset, such as `US`; BigQuery finds it by itself where it is not set."""
    bigquery_dataset: Annotated[str, Field(pattern=NAME)] = "BI_USA"
    """Dataset of the source tables."""
    bigquery_view_prefix: Annotated[str, Field(pattern=NAME)] = "bi_P3fV4dWNeMkN5RJMhV8e_vw"
    """What the names of the source views begin with, up to the last underscore."""
    bigquery_agents_table: Annotated[str, Field(pattern=NAME)] = "homologacion_P3fV4dWNeMkN5RJMhV8e_usuarios"
    """Table of the agents' names and teams."""
    bigquery_maximum_bytes_billed: Annotated[int, Field(ge=1)] = 20 * GIBIBYTE
    """Cap of one query; BigQuery refuses a query that would bill more, at no cost."""
    bigquery_daily_budget_bytes: Annotated[int, Field(ge=1)] | None = None
    """What all queries of a day of America/Lima may bill together; past it only forced refreshes run."""
    bigquery_price_per_tib: Annotated[float, Field(ge=0)] = 6.25
    """On-demand price, used for the estimate in a run's metadata."""
    bigquery_use_storage_api: bool = True
    """Whether results come over the Storage Read API where it is reachable; REST otherwise."""
    bigquery_wire_compression: Literal["lz4", "zstd", "none"] = "lz4"
    """How rows are compressed on their way over the Storage Read API."""
    bigquery_emulator_host: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """REST address of an emulator, such as `http://127.0.0.1:9050`; with it no credentials are needed."""
    bigquery_emulator_storage: Annotated[str, Field(pattern=r"^[^/]+:\d+$")] | None = None
    """`host:port` of the emulator's Storage Read API."""
    google_application_credentials: Path | None = None
    """Key file of the service account. Read by the Google client; not set, it looks for the machine's own credentials."""

    partitions_start: date = date(2024, 1, 1)
    """The first daily partition. Changing it later changes which partitions Dagster knows."""
    initial_window_days: Annotated[int, Field(ge=1)] = 30
    """How many trailing days a table's first incremental refresh loads."""

    automation: bool = True
    """Whether sensors and schedules are on from the start; each can be turned on and off in Dagster's UI, too."""
    sensor_interval_seconds: Annotated[int, Field(ge=1)] = 60
    """How often the daemon looks for tables that are due, for attempts that died, and for alerts to send."""
    retry_wait_seconds: Annotated[int, Field(ge=1)] = 120
    """How long the refresh sensor waits after a table's first failed run; the wait doubles with each further one."""
    retry_wait_maximum_seconds: Annotated[int, Field(ge=1)] = 3600
    """The longest such wait."""
    retry_limit: Annotated[int, Field(ge=1)] = 5
    """Failed runs in a row from which a table raises an alert and is retried at its ordinary rhythm only."""
    change_aware: bool = True
    """Whether the refresh sensor leaves out partitions that the source says have not changed since they were loaded."""
    change_margin_seconds: Annotated[int, Field(ge=0)] = 600
    """How far BigQuery's clock and ours may be apart: a change counts from that long before a load began."""
    alert_urls: SecretStr = SecretStr("")
    """Where alerts go: Apprise URLs with commas or white space between them; none, and alerts are kept in PostgreSQL only."""
    alert_gather_seconds: Annotated[int, Field(ge=0)] = 60
    """How long failures gather before they are told, as one message, and how long recoveries do."""
    alert_reminder_hours: Annotated[float, Field(gt=0)] = 6
    """A problem that stays is told again at most so often."""
    alert_timeout_seconds: Annotated[int, Field(ge=1)] = 10
    """How long an alert's channel may take to accept a message."""

    api_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address that the HTTP API listens on. Beyond loopback it needs tokens."""
    api_port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port of the HTTP API."""
    api_cors_origins: str = ""
    """Origins such as `https://dashboard.example.com` whose pages may use the API, with commas or white space between them."""

    dagster_home: Path | None = None
    """Absolute folder that holds `dagster.yaml` and the runs' logs. Read by Dagster."""
    dagster_postgres_url: SecretStr | None = None
    """`postgresql://…` of Dagster's own storage: a database or a schema of its own. Read by `dagster.yaml`."""
    pulso_log_format: Literal["text", "json"] = "text"
    """Form of the command line's log lines."""

    _owner: Owner = PrivateAttr(default_factory=Owner)

    @property
    def owner(self) -> Owner:
        """Whose settings these are."""
        return self._owner

    def owned_by(self, owner: Owner, **changes: Any) -> Settings:
        """The same settings as the owner has them; `changes`, by field, are taken as they are."""
        found = self.model_copy(update=changes)
        found._owner = owner
        return found

    @field_validator("alert_urls")
    @classmethod
    def _known_channels(cls, value: SecretStr) -> SecretStr:
        parse_channels(value.get_secret_value())
        return value

    @field_validator("api_cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in _entries(value):
            if not re.fullmatch(r"https?://[^\s/@?#*]+", origin):
                raise ValueError("an origin reads https://host or https://host:port, without a path and without *")
        return value

    @model_validator(mode="after")
    def _nobody_unknown_from_outside(self) -> Settings:
        if self.api_host not in LOOPBACK and not self.guarded:
            raise ValueError("API_HOST leaves this machine, which needs API_TOKENS: make one with `pulso-etl token NAME ROLE`")
        return self

    @field_validator("database_url", "dagster_postgres_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # What libpq misreads comes back in its error, password and all: it must not get that far.
        if value is None:
            return None
        url = value.get_secret_value()
        # SQLAlchemy, through which Dagster connects, does not know the short form.
        schemes = ("postgresql://",) if info.field_name == "dagster_postgres_url" else ("postgresql://", "postgres://")
        if not url.startswith(schemes):
            raise ValueError("must start with postgresql://")
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error:
            parts = {"port": "unreadable"}
        ports = str(parts.get("port") or 5432).split(",")
        if not all(port.isdecimal() for port in ports) or "@" in f"{parts.get('host')}{parts.get('dbname')}":
            raise ValueError(
                "must read postgresql://user:password@host:port/database, special characters of the password percent-encoded"
            )
        return value

    def cors_origins(self) -> list[str]:
        """The origins of `api_cors_origins`."""
        return _entries(self.api_cors_origins)

    def sources(self) -> dict[str, str]:
        """Full BigQuery names of the source tables, by the placeholder that the `.sql` files use."""
        base = f"{self.bigquery_project_id}.{self.bigquery_dataset}"
        views = ("dashboard_cobranzas", "asignaciones_clean", "gestiones_unificadas")
        return {view: f"{base}.{self.bigquery_view_prefix}_{view}" for view in views} | {
            "agentes": f"{base}.{self.bigquery_agents_table}"
        }


def _entries(text: str) -> list[str]:
    return [entry for entry in re.split(r"[\s,]+", text) if entry]


def load_settings(**given: Any) -> Settings:
    """The settings of this process; those that are `given`, and not None, win over the environment. Raises SettingsError."""
    return _load(Settings, given)


def load_access_settings() -> AccessSettings:
    """The settings of the process of Dagster's UI. Raises SettingsError."""
    return _load(AccessSettings, {})


def _load(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """Raises SettingsError, one line that names each setting at fault, never a value."""
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(
            (f"{'_'.join(str(part) for part in fault['loc']).upper()}: " if fault["loc"] else "")
            + ("is not set" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, "))
            for fault in error.errors(include_input=False)
        )
        raise SettingsError(f"settings: {faults} (see .env.example)") from None


def load_env_file(path: Path | None = None) -> None:
    """Loads `path`, or the working directory's `.env` where there is one, into the environment, over what stands there.

    For entry points only. Raises SettingsError for a file that can't be read.
    """
    file = path or Path(".env")
    try:
        if path is not None or file.exists():
            load_dotenv(stream=StringIO(file.read_text(encoding="utf-8")), override=True)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
