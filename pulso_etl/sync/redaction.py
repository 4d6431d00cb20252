"""Blanks secrets in everything that is recorded: history rows, events and metadata of runs, logs, alerts and answers.

It knows every secret of the settings from the moment at which they are read. It also blanks text that has the form of a secret: the
password of an address, a private key, a token. No other place decides on this.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

BLANK = "***"
SHORTEST = 6
"""A shorter secret is blanked only where a password stands, because it could be any word."""
SHAPES = (
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@?#'\"]*:)[^\s/@'\"]+(?=@)"), rf"\1{BLANK}"),
    (re.compile(r"(\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s'\"]+)", re.IGNORECASE), rf"\1{BLANK}"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), BLANK),
    (re.compile(r"(\bBearer\s+)[A-Za-z0-9._~+/-]{12,}=*", re.IGNORECASE), rf"\1{BLANK}"),
    (re.compile(r"\bpulso_[A-Za-z0-9_-]{40,}"), BLANK),
)
"""The forms of secrets that no setting holds, and the text that replaces them."""
_known: set[str] = set()


def learn(secret: str) -> None:
    """From now on this secret is blanked. For an address, its password and everything after the host are blanked."""
    for entry in re.split(r"[\s,]+", secret):
        parts = _parts(entry)
        for part in (*parts, *(quote(one, safe="") for one in parts), *map(unquote, parts)):
            if len(part) >= SHORTEST:
                _known.add(part)


def learn_key_file(path: Path) -> None:
    """From now on the secrets in the key file of a service account are blanked."""
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # The client that uses the file reports the fault.
        return
    if isinstance(key, dict):
        for name in ("private_key", "private_key_id", "client_secret", "refresh_token"):
            if isinstance(value := key.get(name), str) and len(value) >= SHORTEST:
                _known.update(
                    {value, value.strip(), json.dumps(value)[1:-1], *(line for line in value.split("\n") if len(line) > 40)}
                )


def _parts(entry: str) -> list[str]:
    """The secret parts of an entry of a setting."""
    if "://" not in entry:
        # An entry of a token is name:role:digest:last day.
        return [entry, *entry.split(":")[2:3]]
    try:
        address = urlsplit(entry)
        public = {address.username, address.hostname, address.path.strip("/")}
        password = address.password
    except ValueError:
        return [entry]
    # A database's address stays readable, because it helps to find a fault. In a web hook's address the path is the secret.
    if address.scheme in ("postgresql", "postgres"):
        return [password] if password and password not in public else []
    return [entry, *filter(None, [password, *re.split(r"[/?&=]", f"{address.path}?{address.query}")])]


def scrub(text: str) -> str:
    """The text without secrets."""
    for shape, left in SHAPES:
        text = shape.sub(left, text)
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, BLANK)
    return text


def scrubbed(value: Any) -> Any:
    """The same value with all texts scrubbed: in mappings, lists and tuples, at any depth."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: scrubbed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [scrubbed(entry) for entry in value]
    if type(value) is tuple:
        return tuple(scrubbed(entry) for entry in value)
    return value


def clean(error: BaseException) -> None:
    """Blanks secrets in the error and in its causes, because a record of an error includes its causes."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        todo += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        one.args = scrubbed(one.args)
        for name, value in list(vars(one).items()):
            if isinstance(value, str | list | dict | tuple):
                # An attribute that cannot be set is not recorded either.
                try:
                    setattr(one, name, scrubbed(value))
                except AttributeError:
                    continue
        if str(one) != (text := scrub(str(one))):
            one.args = (text,)


@contextmanager
def clean_errors() -> Iterator[None]:
    """Blanks secrets in every error of the block, because the error will be recorded."""
    try:
        yield
    except BaseException as error:
        clean(error)
        raise


class Scrubbing(logging.LogRecord):
    """A log line without secrets in its message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            message = self.getMessage()
        except Exception:
            # The handler reports a message that cannot be formatted.
            return
        if message != (text := scrub(message)):
            self.msg, self.args = text, None


def scrub_logs() -> None:
    """From now on no log line of this process has a secret in its message, whoever writes it."""
    logging.setLogRecordFactory(Scrubbing)
