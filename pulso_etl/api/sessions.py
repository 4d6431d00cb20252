"""Who is signed in at Dagster's UI: a cookie that stands for a token, and holds nothing of it.

It is signed with a key that this process made at its start. So nothing is kept of those who sign in, a restart ends every session,
and a token that is taken out of the settings ends its own.
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
    """Signs callers in by their token, and knows them again by their cookie."""

    def __init__(self, tokens: Iterable[Token], *, secure: bool) -> None:
        """`secure`: browsers reach this by HTTPS alone."""
        self.tokens = tokens
        self.secure = secure
        self._key = secrets.token_bytes(32)

    def by_token(self, secret: str) -> Caller | None:
        """Whose token that is."""
        return find_caller(self.tokens, secret)

    def cookie(self, caller: Caller, now: datetime) -> str:
        """The header `Set-Cookie` for the caller at the instant `now` (with zone)."""
        expires = str(int((now + LIFETIME).timestamp()))
        value = f"{caller.name}.{expires}.{self._signature(caller.name, expires)}"
        flags = "HttpOnly; SameSite=Strict; Path=/" + ("; Secure" if self.secure else "")
        return f"{COOKIE}={value}; Max-Age={int(LIFETIME.total_seconds())}; {flags}"

    def by_cookie(self, header: str, now: datetime) -> Caller | None:
        """Who is signed in by the header `Cookie` at the instant `now` (with zone)."""
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
        # The digest belongs to it: a token that is made anew under an old name starts without sessions.
        digest = next((token.digest for token in self.tokens if token.caller.name == name), "")
        return hmac.new(self._key, f"{name}.{expires}.{digest}".encode(), hashlib.sha256).hexdigest()
