"""The API behind a real nginx, set up as the documentation says, on a port that is not HTTPS's own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from pulso_etl_tests.alerts.receivers import MakeSettings
from pulso_etl_tests.api.conftest import SECRETS
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.dagster_stack import CHECKOUT

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
NAME = "etl.example.com"
ORIGIN = "https://dashboard.example.com"
STATUS = "/api/v1/etl/status"
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt install nginx-light)")


def certify(home: Path) -> None:
    """A certificate of the name, and its key, in `home`."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    made = x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    pem = serialization.Encoding.PEM
    (home / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (home / "key.pem").write_bytes(key.private_bytes(pem, *plain))


def configuration(home: Path, port: int, api: int) -> str:
    """The documented server. The test's paths and ports replace those that each deployment chooses."""
    [server] = re.findall(r"```nginx\n(.*?)```", (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    for theirs, ours in {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/etl.example.com.pem": str(home / "cert.pem"),
        "/etc/ssl/etl.example.com.key": str(home / "key.pem"),
        "http://127.0.0.1:8000": f"http://127.0.0.1:{api}",
    }.items():
        assert server.count(theirs) == 1, theirs
        server = server.replace(theirs, ours)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {home}/{kind};\n" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""
    return f"{user}daemon off;\npid {home}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{server}}}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("nginx")
    certify(home)
    return home


@pytest.fixture
def browser(made: Path, make_settings: MakeSettings) -> Iterator[httpx.Client]:
    """A client that reaches the API by the proxy's name and port, with a token."""
    assert NGINX is not None
    (_, token) = SECRETS["read"]
    settings = make_settings(
        api_tokens=SecretStr(str(token)), api_cors_origins=ORIGIN, dagster_graphql_url="http://127.0.0.1:1/graphql"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ApiServer(settings) as api:
        (made / "nginx.conf").write_text(configuration(made, port, api.port))
        proxy = subprocess.Popen([NGINX, "-p", str(made), "-c", str(made / "nginx.conf"), "-e", str(made / "log")])
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert proxy.poll() is None, (made / "log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            trusted = ssl.create_default_context(cafile=str(made / "cert.pem"))
            headers = {"Host": f"{NAME}:{port}", "Authorization": f"Bearer {SECRETS['read'][0]}"}
            with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted, headers=headers, trust_env=False) as client:
                client.event_hooks["request"] = [lambda request: request.extensions.update(sni_hostname=NAME)]
                yield client
        finally:
            proxy.terminate()
            proxy.wait(20)


def test_the_documented_proxy_serves_the_api_on_another_port(browser: httpx.Client) -> None:
    answer = browser.get(STATUS)
    assert answer.status_code == 200, answer.text
    tag = answer.headers["etag"]
    head = browser.head(STATUS)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)
    for given in (tag, tag.removeprefix("W/")):
        known = browser.get(STATUS, headers={"If-None-Match": given})
        assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", tag)
    # The proxy serves a page of the same name and port. It serves no other page.
    own = f"https://{browser.headers['host']}"
    assert browser.get(STATUS, headers={"Origin": own}).status_code == 200
    moved = browser.get(f"{STATUS}/?a=b")
    assert moved.status_code == 307
    assert httpx.URL(f"{own}{STATUS}/").join(moved.headers["location"]) == httpx.URL(f"{own}{STATUS}?a=b")
    assert browser.get(STATUS, headers={"Authorization": ""}).status_code == 401


def test_another_origin_is_let_in_through_the_proxy_as_the_settings_say(browser: httpx.Client) -> None:
    asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,if-none-match"}
    answer = browser.options(STATUS, headers={"Origin": ORIGIN, **asks})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "if-none-match" in answer.headers["access-control-allow-headers"].lower()
    told = browser.get(STATUS, headers={"Origin": ORIGIN})
    assert told.headers["access-control-allow-origin"] == ORIGIN
    assert "ETag" in told.headers["access-control-expose-headers"]
    stranger = browser.get(STATUS, headers={"Origin": "https://elsewhere.example.com"})
    assert "access-control-allow-origin" not in stranger.headers


def test_events_pass_the_proxy_as_they_happen(browser: httpx.Client) -> None:
    with browser.stream("GET", "/api/v1/etl/events", timeout=20) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        # The stream goes on. So the proxy has passed these events on before the end of the stream.
        assert next(line for line in stream.iter_lines() if not line.startswith("id: ")) == "event: status"
    head = browser.head("/api/v1/etl/events")
    assert (head.status_code, head.content) == (200, b"")
