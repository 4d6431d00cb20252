"""Reads and checks `ALERT_URLS`. A channel's name is only its scheme and host, because the rest of its URL is secret."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from urllib.parse import unquote

from pydantic import SecretStr

HOOKS = frozenset({"hooks.slack.com", "hooks.slack-gov.com"})
SCHEMES = ("mailto", "mailtos", "slack", "json", "jsons", "mmost", "mmosts", "https")
"""E-mail; Slack, also with the https address that Slack gives; a JSON webhook; a Slack-compatible receiver."""

_NEXT_URL = re.compile(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_URL = re.compile(
    r"(?P<scheme>[A-Za-z]+)://(?:[^\s/?#]*@)?(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?:/[^\s?#@]*)?(?:\?[^\s?#]*)?"
)


@dataclass(frozen=True)
class Channel:
    """One receiver. `name` is safe to show and unique among the channels."""

    name: str
    url: SecretStr

    def without_secrets(self, text: str) -> str:
        """The text on one line, shortened. It blanks e-mail addresses, and every part of the URL except scheme and host."""
        url = self.url.get_secret_value()
        parts = _URL.fullmatch(url)
        keep = {parts["scheme"], parts["host"]} if parts else set()
        for part in sorted({unquote(piece) for piece in re.split(r"[/?&=@:,]+", url)} - keep, key=len, reverse=True):
            if len(part) > 3:
                text = text.replace(part, "***")
        return re.sub(r"[^\s<>]+@[^\s<>]+", "***", " ".join(text.split()))[:200]


def parse_channels(urls: str) -> list[Channel]:
    """The channels of `ALERT_URLS`: URLs with commas or white space between them.

    Raises ValueError, one line with the position of the wrong URL. It shows no part of the URL except an unknown scheme.
    """
    given = _NEXT_URL.split(urls.strip(" \t\r\n,")) if urls.strip(" \t\r\n,") else []
    names: Counter[str] = Counter()
    channels = []
    for position, url in enumerate(given, 1):
        where = f"URL {position} of {len(given)}"
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,15})://", url)
        if scheme is None:
            raise ValueError(f"{where} does not start with a scheme; known are {', '.join(SCHEMES)}")
        if scheme[1].lower() not in SCHEMES:
            raise ValueError(f"{where} has the unknown scheme {scheme[1]}; known are {', '.join(SCHEMES)}")
        parts = _URL.fullmatch(url)
        if parts is None:
            raise ValueError(
                f"{where} ({scheme[1]}) is malformed: percent-encode @ / ? # and spaces in names and passwords, "
                "and give recipients as ?to="
            )
        kind, host = parts["scheme"].lower(), parts["host"].lower()
        if kind == "https" and host not in HOOKS:
            raise ValueError(
                f"{where} is an https address that is not Slack's; for a JSON webhook write jsons:// instead of https://"
            )
        # In Slack's own scheme the place of the host holds a token.
        name = f"{kind}://{'hooks.slack.com' if kind == 'slack' else host}"
        names[name] += 1
        channels.append(Channel(name if names[name] == 1 else f"{name} ({names[name]})", SecretStr(url)))
    return channels
