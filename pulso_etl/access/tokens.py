"""Who may do what: tokens with a name, a role and, optionally, a last day. Only hashes of them are kept."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import IntEnum
from pathlib import Path

from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.spec import TENANT
from pulso_etl.sync.zone import DEFAULT, Zone

logger = logging.getLogger(__name__)

NAME = r"[A-Za-z0-9_.-]{1,64}"
ENTRY = re.compile(rf"({NAME}(?:@({TENANT.strip('^$')}))?):(read|refresh|admin):([0-9a-f]{{64}})(?::(\d{{4}}-\d\d-\d\d))?")


class Role(IntEnum):
    """What a caller may do. Each role includes the roles before it."""

    READ = 1
    REFRESH = 2
    ADMIN = 3


def role_named(name: str) -> Role:
    """The role of that name. Raises SettingsError."""
    if name.upper() not in Role.__members__:
        raise SettingsError(f"unknown role {name}; known are {', '.join(known.name.lower() for known in Role)}")
    return Role[name.upper()]


@dataclass(frozen=True)
class Caller:
    """Who asks. `name` is `name@tenant` if the token belongs to a tenant."""

    name: str
    role: Role
    tenant: str = ""


@dataclass(frozen=True)
class Token:
    """A token as the settings keep it. `digest` is the SHA-256 of its secret, in hexadecimal. `last_day` is the last
    day on which it opens anything.

    A fast hash is enough, because a secret has 256 random bits, and nobody can try them all.
    """

    caller: Caller
    digest: str
    last_day: date | None = None

    def __str__(self) -> str:
        last = f":{self.last_day}" if self.last_day else ""
        return f"{self.caller.name}:{self.caller.role.name.lower()}:{self.digest}{last}"


class Keyring:
    """The tokens that are valid now: the tokens of the entries and of the file, which is read again when it has changed.

    Iteration gives the tokens whose last day is not over. `which` chooses among all tokens. If the file cannot be read or holds
    something that is no entry, its tokens stay as they were. If that is so at the start, raises ValueError.
    """

    def __init__(
        self,
        entries: str,
        file: Path | None,
        which: Callable[[Sequence[Token]], Sequence[Token]] = tuple,
        zone: Zone = DEFAULT,
    ) -> None:
        """`zone`: in which a token's last day ends."""
        self._entries, self._file, self._which, self._zone = entries, file, which, zone
        self._seen = _version(file) if file else None
        self._tokens = self._read()

    def __iter__(self) -> Iterator[Token]:
        if self._file is not None and (seen := _version(self._file)) != self._seen:
            self._seen = seen
            try:
                self._tokens = self._read()
            except ValueError as error:
                logger.warning("API_TOKENS_FILE: %s; its tokens stay as they were", error)
            else:
                logger.info("API_TOKENS_FILE: read again, %d token(s)", len(self._tokens))
        today = self._zone.day(datetime.now(UTC))
        return iter([token for token in self._tokens if token.last_day is None or today <= token.last_day])

    def _read(self) -> tuple[Token, ...]:
        try:
            more = "" if self._file is None else self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self._file} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
        return tuple(self._which(parse_tokens(f"{self._entries} {more}")))


def make_token(name: str, role: Role, tenant: str = "", last_day: date | None = None) -> tuple[str, Token]:
    """A new secret, which is shown once, and the token that is kept. Raises ValueError for an invalid name."""
    if not re.fullmatch(NAME, name):
        raise ValueError("a token's name is 1 to 64 letters, digits, dots, dashes or underscores")
    if tenant and not re.fullmatch(TENANT, tenant):
        raise ValueError("a tenant's name is small letters, digits and single underscores")
    secret = f"pulso_{secrets.token_urlsafe(32)}"
    return secret, token_of(secret, Caller(f"{name}@{tenant}" if tenant else name, role, tenant), last_day)


def token_of(secret: str, caller: Caller, last_day: date | None = None) -> Token:
    """The token that is kept for the caller's secret."""
    return Token(caller, _digest(secret), last_day)


def parse_tokens(text: str) -> tuple[Token, ...]:
    """The tokens of the entries, with commas or white space between them. An entry reads `name:role:digest` or
    `name@tenant:role:digest`, optionally with `:YYYY-MM-DD` at its end.

    Raises ValueError, which does not quote the entry.
    """
    tokens = []
    for place, entry in enumerate(re.split(r"[\s,]+", text.strip()), 1):
        if not entry:
            continue
        found = ENTRY.fullmatch(entry)
        if found is None:
            raise ValueError(f"entry {place} is not name:role:digest as `pulso-etl token NAME ROLE` prints it")
        name, tenant, role, digest, last = found.groups()
        try:
            last_day = date.fromisoformat(last) if last else None
        except ValueError:
            raise ValueError(f"entry {place}: its last day is not a date") from None
        tokens.append(Token(Caller(name, Role[role.upper()], tenant or ""), digest, last_day))
    names = [token.caller.name for token in tokens]
    if len(names) != len(set(names)):
        raise ValueError("two tokens have the same name")
    return tuple(tokens)


def opening(tokens: Sequence[Token], tenant: str) -> tuple[Token, ...]:
    """The tokens that open the routes of the tenant: its own tokens, and the tokens of administrators without a tenant.

    Without tenants: the tokens without a tenant.
    """
    return tuple(
        token for token in tokens if token.caller.tenant == tenant or (not token.caller.tenant and token.caller.role is Role.ADMIN)
    )


def find_caller(tokens: Iterable[Token], secret: str) -> Caller | None:
    """The caller with that secret. Compares every token in constant time, so the duration reveals nothing."""
    digest, found = _digest(secret), None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token.caller
    return found


def _version(file: Path) -> tuple[int, ...]:
    """Values that differ after each change of the file."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
