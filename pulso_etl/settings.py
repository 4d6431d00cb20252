"""Reads every setting of Pulso ETL from the environment and checks it at start.

All processes follow one rule: at start they load the file `.env` of the working directory into the environment, and the file wins
over variables that are already set. Dagster's webserver, daemon, code servers and runs do that themselves. The command line does it
with `load_env_file`. Nothing else reads the file. So a setting has the same value for Pulso ETL, for `dagster.yaml` and for the
Google client. The embedded default (`pulso-etl run` and `dev`) reads no `.env`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from dotenv import load_dotenv
from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from pulso_etl.access.tokens import Keyring, Token, parse_tokens
from pulso_etl.alerts.channels import parse_channels
from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.redaction import learn, learn_key_file
from pulso_etl.sync.zone import DEFAULT_ZONE, Zone, known_zone

GIBIBYTE = 1024**3
NAME = r"^[A-Za-z0-9_-]+$"
Kind = TypeVar("Kind", bound="AccessSettings")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Owner:
    """The owner of settings: a tenant, and its role in PostgreSQL. Both are empty without tenants."""

    tenant: str = ""
    database_role: str = ""


@dataclass(frozen=True)
class Retention:
    """How long the past is kept: of Dagster, files of logs, and runs with their events and checks; of the ledger, its kinds."""

    logs: timedelta = field(default=timedelta(days=14), metadata={"at_least": 1})
    runs: timedelta = field(default=timedelta(days=90), metadata={"at_least": 1})
    # The budget of the month counts attempts and queries.
    attempts: timedelta = field(default=timedelta(days=400), metadata={"at_least": 62})
    queries: timedelta = field(default=timedelta(days=400), metadata={"at_least": 62})
    # An incident is recognised for a day after its end.
    alerts: timedelta = field(default=timedelta(days=400), metadata={"at_least": 7})
    refreshes: timedelta = field(default=timedelta(days=90), metadata={"at_least": 7})

    @classmethod
    def parse(cls, text: str) -> Retention:
        """The retention of a text such as `logs=14 runs=90`, in days. Raises ValueError."""
        least = {one.name: one.metadata["at_least"] for one in fields(cls)}
        days = dict(entry.partition("=")[::2] for entry in _entries(text))
        if not days.keys() <= least.keys() or not all(re.fullmatch(r"[1-9][0-9]{0,4}", value) for value in days.values()):
            raise ValueError(f"must read like logs=14 runs=90, in days, 1 or more; the kinds are {', '.join(sorted(least))}")
        if short := [f"{kind}={least[kind]}" for kind, value in days.items() if int(value) < least[kind]]:
            raise ValueError(f"must keep at least {' '.join(short)}")
        return cls(**{kind: timedelta(days=int(value)) for kind, value in days.items()})

    def before(self, now: datetime) -> dict[str, datetime]:
        """The instant of each kind whose older entries are deleted at the instant `now`."""
        return {one.name: now - getattr(self, one.name) for one in fields(self)}

    def __str__(self) -> str:
        return " ".join(f"{one.name}={getattr(self, one.name).days}" for one in fields(self))


class AccessSettings(BaseSettings):
    """The settings of access. The process of Dagster's UI reads only these. Fields are read like the fields of `Settings`."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    api_tokens: SecretStr = SecretStr("")
    """Who may use API and Dagster's UI: entries that `pulso-etl token` prints. Without a token neither starts."""
    api_tokens_file: Path | None = None
    """File with further entries, read again whenever it changes. So tokens can come and go without a restart."""
    api_launch_limit: str = "30/minute"
    """How many runs one caller may launch: a number and a unit of time."""
    dagster_ui_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = "http://127.0.0.1:3000"
    """Where people reach Dagster's UI; alerts link to its runs."""
    dagster_graphql_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = "http://127.0.0.1:3000/graphql"
    """Where the API reaches the GraphQL of Dagster's webserver."""
    dagster_graphql_token: SecretStr | None = None
    """Secret with which the API signs in at Dagster's webserver: 32 or more random characters, the same for both."""
    timezone: Annotated[str, AfterValidator(known_zone)] = DEFAULT_ZONE
    """Time zone of the days, by its name in the IANA list. Plans, schedules, budgets and the times that people see follow it."""
    tenants_file: Path | None = None
    """File that declares the tenants, YAML or TOML. Without it the deployment serves a single organisation."""

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

    @property
    def zone(self) -> Zone:
        """The time zone of the deployment, or of the tenant."""
        return Zone(self.timezone)

    def keyring(self, which: Callable[[Sequence[Token]], Sequence[Token]]) -> Keyring:
        """The tokens that `which` chooses, always up to date."""
        return Keyring(self.api_tokens.get_secret_value(), self.api_tokens_file, which, self.zone)

    @property
    def guarded(self) -> bool:
        """Whether tokens protect API and UI, even if the file of tokens is empty for now."""
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
        """From now on every record blanks the secrets of these settings."""
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
            raise ValueError("must have 32 characters or more: `openssl rand -hex 32` makes one")
        return value


class Settings(AccessSettings):
    """Settings of one deployment. The environment variable `X_Y` sets the field `x_y`; an empty variable counts as not set.

    Days are days of `timezone`, prices are US dollars.
    """

    database_url: SecretStr
    """`postgresql://user:password@host:port/database` of the dashboard's PostgreSQL (15 or newer)."""
    database_schema: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "public"
    """Schema of the five tables and of the watermarks."""
    lock_timeout_seconds: Annotated[int, Field(ge=1)] = 900
    """How long a load waits for another writer of its table."""
    work_mem_mb: Annotated[int, Field(ge=4)] = 256
    """PostgreSQL's work_mem in a load's transaction, in MiB. The hash join may take twice that, the staged rows as much again."""

    bigquery_project_id: Annotated[str, Field(pattern=r"^[a-z0-9.:-]+$")] = "mibot-222814"
    """Project of the source tables. It also pays for the queries."""
    bigquery_location: Annotated[str, Field(pattern=NAME)] | None = None
    """Location of the dataset, such as `US`. If it is not set, BigQuery finds it."""
    bigquery_dataset: Annotated[str, Field(pattern=NAME)] = "BI_USA"
    """Dataset of the source tables."""
    bigquery_view_prefix: Annotated[str, Field(pattern=NAME)] = "bi_P3fV4dWNeMkN5RJMhV8e_vw"
    """The beginning of the names of the source views, up to the last underscore."""
    bigquery_agents_table: Annotated[str, Field(pattern=NAME)] = "homologacion_P3fV4dWNeMkN5RJMhV8e_usuarios"
    """Table with the agents' names and teams."""
    bigquery_maximum_bytes_billed: Annotated[int, Field(ge=1)] = 20 * GIBIBYTE
    """Limit of one query, in bytes. BigQuery refuses a query that would bill more, at no cost."""
    bigquery_daily_budget_bytes: Annotated[int, Field(ge=1)] | None = None
    """Limit of all queries of a day, in bytes. Beyond it only forced refreshes run."""
    bigquery_daily_budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Limit of all queries of a day, in US dollars."""
    bigquery_monthly_budget_bytes: Annotated[int, Field(ge=1)] | None = None
    """Limit of all queries of a calendar month, in bytes."""
    bigquery_monthly_budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Limit of all queries of a calendar month, in US dollars, without the free volume."""
    bigquery_price_per_tib: Annotated[float, Field(ge=0)] = 6.25
    """On-demand price in US dollars."""
    bigquery_price_per_slot_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of an hour of a slot in US dollars. Set it if the account pays for slots: bytes then cost nothing."""
    bigquery_free_tib_per_month: Annotated[float, Field(ge=0)] = 1.0
    """The volume that costs nothing each month, on demand. Set 0 if other users of the account use it up."""
    bigquery_use_storage_api: bool = True
    """Whether results come over the Storage Read API if it is reachable. Otherwise they come over REST."""
    bigquery_wire_compression: Literal["lz4", "zstd", "none"] = "lz4"
    """Compression of the rows from the Storage Read API."""
    bigquery_emulator_host: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """REST address of an emulator, such as `http://127.0.0.1:9050`. An emulator needs no credentials."""
    bigquery_emulator_storage: Annotated[str, Field(pattern=r"^[^/]+:\d+$")] | None = None
    """`host:port` of the emulator's Storage Read API."""
    google_application_credentials: Path | None = None
    """Key file of the service account, which the Google client reads. Without it, the client uses the machine's credentials."""

    partitions_start: date = date(2024, 1, 1)
    """The first daily partition. If you change it later, Dagster knows other partitions."""
    initial_window_days: Annotated[int, Field(ge=1)] = 30
    """Number of trailing days that a table's first incremental refresh loads."""

    automation: bool = True
    """Whether sensors and schedules are on from the start. Dagster's UI can turn each on and off."""
    sensor_interval_seconds: Annotated[int, Field(ge=1)] = 60
    """Seconds between two looks of the daemon for due tables and for alerts to send; an upper limit for other looks."""
    retry_wait_seconds: Annotated[int, Field(ge=1)] = 120
    """How long the refresh sensor waits after a table's first failed run. The wait doubles with each further failure."""
    retry_wait_maximum_seconds: Annotated[int, Field(ge=1)] = 3600
    """The longest such wait."""
    retry_limit: Annotated[int, Field(ge=1)] = 5
    """After this many failed runs in a row a table raises an alert, and is tried again only at its ordinary frequency."""
    change_aware: bool = True
    """Whether the refresh sensor skips partitions that the source reports as unchanged since they were loaded."""
    change_look_seconds: Annotated[int, Field(ge=1)] = 120
    """How often the refresh sensor looks at the source of a table that is not due by its rhythm."""
    change_look_requests: Annotated[int, Field(ge=1)] = 300
    """After so many requests in a minute, the sensor looks at no further source in that minute."""
    change_margin_seconds: Annotated[int, Field(ge=0)] = 600
    """How far BigQuery's clock and ours may differ. A change counts if it came up to this long before a load began."""
    alert_urls: SecretStr = SecretStr("")
    """Where alerts are sent: Apprise URLs with commas or white space between them. Without any, only PostgreSQL keeps alerts."""
    alert_gather_seconds: Annotated[int, Field(ge=0)] = 60
    """How long failures, and recoveries, gather before one message tells of them."""
    alert_reminder_hours: Annotated[float, Field(gt=0)] = 6
    """A message repeats a lasting problem at most this often."""
    alert_timeout_seconds: Annotated[int, Field(ge=1)] = 10
    """How long a channel may take to accept a message."""

    api_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address on which the HTTP API listens. Beyond loopback it needs tokens."""
    api_port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port of the HTTP API."""
    contact_name: Annotated[str, Field(max_length=100)] = ""
    """Whom the page names to people who need help, such as `Ana Pérez`. Only callers with a token see the contact."""
    contact_mail: Annotated[str, Field(pattern=r"^$|^[^\s@<>?&]+@[^\s@<>?&]+$")] = ""
    """The contact's mail address."""
    contact_whatsapp: Annotated[str, Field(pattern=r"^$|^\+?[0-9]{7,15}$")] = ""
    """The contact's number at WhatsApp, with the country's code, such as `51987654321`."""
    api_cors_origins: str = ""
    """Origins of pages that may use the API, such as `https://dashboard.example.com`, with commas or white space between them."""
    page_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None = None
    """Where people reach the status page; the assets in Dagster's UI link to it."""

    retention_days: str = "logs=14 runs=90 attempts=400 queries=400 alerts=400 refreshes=90"
    """For how many days the past is kept, by kind; a kind that is not named has its default."""
    dagster_home: Path | None = None
    """Absolute path of the folder with `dagster.yaml` and the runs' logs. Dagster reads this setting."""
    dagster_postgres_url: SecretStr | None = None
    """`postgresql://…` of Dagster's own storage: a database or a schema of its own. `dagster.yaml` reads this setting."""
    pulso_log_format: Literal["text", "json"] = "text"
    """Format of the log lines of every process."""

    _owner: Owner = PrivateAttr(default_factory=Owner)

    @property
    def owner(self) -> Owner:
        """The owner of these settings."""
        return self._owner

    def owned_by(self, owner: Owner, **changes: Any) -> Settings:
        """The same settings for this owner, with `changes` by field. The changes are not checked."""
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
            raise ValueError("API_HOST is not on loopback, which needs API_TOKENS: make one with `pulso-etl token NAME ROLE`")
        return self

    @field_validator("database_url", "dagster_postgres_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # Imported here: Dagster's servers read settings, too, and have no need of this client of PostgreSQL.
        from psycopg import Error
        from psycopg.conninfo import conninfo_to_dict

        # If libpq misreads a URL, its error shows the password. So the URL is checked first.
        if value is None:
            return None
        url = value.get_secret_value()
        # Dagster connects with SQLAlchemy, which does not know the short form.
        schemes = ("postgresql://",) if info.field_name == "dagster_postgres_url" else ("postgresql://", "postgres://")
        if not url.startswith(schemes):
            raise ValueError("must start with postgresql://")
        try:
            parts = conninfo_to_dict(url)
        except Error:
            parts = {"port": "unreadable"}
        ports = str(parts.get("port") or 5432).split(",")
        if not all(port.isdecimal() for port in ports) or "@" in f"{parts.get('host')}{parts.get('dbname')}":
            raise ValueError(
                "must read postgresql://user:password@host:port/database; percent-encode special characters of the password"
            )
        return value

    @field_validator("retention_days")
    @classmethod
    def _known_kinds(cls, value: str) -> str:
        Retention.parse(value)
        return value

    @property
    def retention(self) -> Retention:
        """The times of `retention_days`; a kind that it does not name has its default."""
        return Retention.parse(self.retention_days)

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
    """The settings of this process. Values in `given` that are not None win over the environment. Raises SettingsError."""
    return _load(Settings, given)


def load_access_settings() -> AccessSettings:
    """The settings of the process of Dagster's UI. Raises SettingsError."""
    return _load(AccessSettings, {})


def _load(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """Raises SettingsError, one line that names each wrong setting, and never a value."""
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
    """Loads `path`, or the working directory's `.env` if it exists, into the environment. The file wins.

    For entry points only. Raises SettingsError for a file that cannot be read.
    """
    file = path or Path(".env")
    try:
        if path is not None or file.exists():
            load_dotenv(stream=StringIO(file.read_text(encoding="utf-8")), override=True)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
