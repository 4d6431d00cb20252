"""Sessions of Dagster's UI: a cookie names the caller, and contains no part of the token.

This process signs the cookie with a key that it makes at its start. The server therefore stores no sessions, and a restart ends
all of them. A session also ends when its token leaves the settings.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from http.cookies import CookieError, SimpleCookie

from pulso_etl.access.tokens import Caller, Token, find_caller

COOKIE = "pulso_session"
LIFETIME = timedelta(hours=12)


class Sessions:
    """Signs callers in by their token, and recognizes them by their cookie."""

    def __init__(self, tokens: Iterable[Token], *, secure: bool) -> None:
        """`secure`: browsers use only HTTPS."""
        self.tokens = tokens
        self.secure = secure
        self._key = secrets.token_bytes(32)

    def by_token(self, secret: str) -> Caller | None:
        """The caller who has the token `secret`, or None."""
        return find_caller(self.tokens, secret)

    def cookie(self, caller: Caller, now: datetime) -> str:
        """The header `Set-Cookie` for the caller at the instant `now` (with zone)."""
        expires = str(int((now + LIFETIME).timestamp()))
        value = f"{caller.name}.{expires}.{self._signature(caller.name, expires)}"
        flags = "HttpOnly; SameSite=Strict; Path=/" + ("; Secure" if self.secure else "")
        return f"{COOKIE}={value}; Max-Age={int(LIFETIME.total_seconds())}; {flags}"

    def by_cookie(self, header: str, now: datetime) -> Caller | None:
        """The caller of the header `Cookie` at the instant `now` (with zone), or None."""
        try:
            found = SimpleCookie(header).get(COOKIE)
        except CookieError:
            return None
        name, expires, signature = ["", "", *(found.value if found else "").rsplit(".", 2)][-3:]
        if not hmac.compare_digest(self._signature(name, expires).encode(), signature.encode()):
            return None
        if now >= datetime.fromtimestamp(int(expires), UTC):
            return None
        return next((token.caller for token in self.tokens if token.caller.name == name), None)

    def _signature(self, name: str, expires: str) -> str:
        # The signature covers the token's digest, so a new token with an old name does not inherit its sessions.
        digest = next((token.digest for token in self.tokens if token.caller.name == name), "")
        return hmac.new(self._key, f"{name}.{expires}.{digest}".encode(), hashlib.sha256).hexdigest()
