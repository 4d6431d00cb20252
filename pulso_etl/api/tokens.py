"""Who may do what: tokens with a name and a role, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from pulso_etl.tables.spec import TENANT

NAME = r"[A-Za-z0-9_.-]{1,64}"
ENTRY = re.compile(rf"({NAME}(?:@({TENANT.strip('^$')}))?):(read|refresh|admin):([0-9a-f]{{64}})")


class Role(IntEnum):
    """What a caller may do; each role includes those before it."""

    READ = 1
    REFRESH = 2
    ADMIN = 3


@dataclass(frozen=True)
class Caller:
    """Who asks; `name` is `name@tenant` where the token is of one tenant."""

    name: str
    role: Role
    tenant: str = ""


@dataclass(frozen=True)
class Token:
    """A token as the settings keep it: `digest` is the SHA-256 of its secret, in hexadecimal.

    A fast hash will do: the secrets are 256 random bits, which nobody can try out.
    """

    caller: Caller
    digest: str

    def __str__(self) -> str:
        return f"{self.caller.name}:{self.caller.role.name.lower()}:{self.digest}"


def make_token(name: str, role: Role, tenant: str = "") -> tuple[str, Token]:
    """A new secret, to be told once, and what is kept of it. Raises ValueError for a name that can't be."""
    if not re.fullmatch(NAME, name):
        raise ValueError("a token's name is 1 to 64 letters, digits, dots, dashes or underscores")
    if tenant and not re.fullmatch(TENANT, tenant):
        raise ValueError("a tenant's name is small letters, digits and single underscores")
    secret = f"pulso_{secrets.token_urlsafe(32)}"
    return secret, Token(Caller(f"{name}@{tenant}" if tenant else name, role, tenant), _digest(secret))


def parse_tokens(text: str) -> tuple[Token, ...]:
    """The tokens of entries `name:role:digest`, or `name@tenant:role:digest`, with commas or white space between them.

    Raises ValueError, without quoting what stands there.
    """
    tokens = []
    for place, entry in enumerate(re.split(r"[\s,]+", text.strip()), 1):
        if not entry:
            continue
        found = ENTRY.fullmatch(entry)
        if found is None:
            raise ValueError(f"entry {place} is not name:role:digest as `pulso-etl token NAME ROLE` prints it")
        name, tenant, role, digest = found.groups()
        tokens.append(Token(Caller(name, Role[role.upper()], tenant or ""), digest))
    names = [token.caller.name for token in tokens]
    if len(names) != len(set(names)):
        raise ValueError("two tokens have the same name")
    return tuple(tokens)


def opening(tokens: Sequence[Token], tenant: str) -> tuple[Token, ...]:
    """Those of the tokens that open the routes of the tenant: its own, and those of administrators who are of no tenant.

    Without tenants: those that are of none.
    """
    return tuple(
        token for token in tokens if token.caller.tenant == tenant or (not token.caller.tenant and token.caller.role is Role.ADMIN)
    )


def find_caller(tokens: Sequence[Token], secret: str) -> Caller | None:
    """Whose secret that is. Every token is compared, each in constant time, so that the time taken tells nothing."""
    digest, found = _digest(secret), None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token.caller
    return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
