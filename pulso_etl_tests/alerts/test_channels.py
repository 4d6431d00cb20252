"""ALERT_URLS, and real deliveries to servers on loopback."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from pulso_etl.alerts.channels import parse_channels
from pulso_etl.alerts.delivery import send
from pulso_etl.alerts.messages import Message
from pulso_etl.alerts.service import try_channels
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl_tests.alerts.receivers import Inbox, MakeSettings, Receiver

MESSAGE = Message("[Pulso] Datos vencidos (operation_data)", "Qué pasó: añejos <b> & viejos\nQué hacer: nada", "failure")
HOOK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7"


def test_channels_are_named_by_scheme_and_host_alone() -> None:
    urls = f"mailto://u:p%40ss@smtp.example.com:2525?from=a@b.pe&to=c@d.pe,e@f.pe,json://h/secret\njson://h:81/x  {HOOK},slack://TA/TB/TC"
    assert [channel.name for channel in parse_channels(urls)] == [
        "mailto://smtp.example.com",
        "json://h",
        "json://h (2)",
        "https://hooks.slack.com",
        "slack://hooks.slack.com",
    ]
    assert parse_channels(urls)[0].url.get_secret_value().endswith("to=c@d.pe,e@f.pe")
    assert "secret" not in repr(parse_channels(urls))
    assert parse_channels(" , \n") == []


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        ("json://h, carrierpigeon://s3cret@h/s3cret", "URL 2 of 2 has the unknown scheme carrierpigeon; known are mailto"),
        ("user:s3cret@h", "URL 1 of 1 does not start with a scheme"),
        ("mailto://user:s3cret/s3cret@h?to=a@b.pe", r"URL 1 of 1 \(mailto\) is malformed"),
        ("json://h, hooks.slack.com/s3cret", "URL 1 of 1 .json. is malformed"),
        ("https://example.com/s3cret", "not Slack's; for a JSON webhook write jsons://"),
        ("json://", "malformed"),
    ],
)
def test_a_bad_url_is_one_line_at_start_and_is_not_shown(urls: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("ALERT_URLS", urls)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings()
    assert "ALERT_URLS" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError) as raw:
        Settings()
    assert "s3cret" not in str(raw.value)


def test_the_ui_address_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("DAGSTER_UI_URL", "https://dagster.example.com/")
    assert load_settings().dagster_ui_url == "https://dagster.example.com"
    monkeypatch.setenv("DAGSTER_UI_URL", "dagster.example.com")
    with pytest.raises(SettingsError, match="DAGSTER_UI_URL"):
        load_settings()


@pytest.mark.usefixtures("processes")
def test_the_library_is_not_imported_before_there_is_something_to_send() -> None:
    code = "import sys, pulso_etl.alerts.service; sys.exit('apprise' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_email_arrives_with_its_accents(inbox: Inbox) -> None:
    url = f"mailto://127.0.0.1:{inbox.port}?from=pulso@example.com&to=jefa@example.com,jefe@example.com"
    (delivery,) = send(parse_channels(url), MESSAGE, timeout=5)
    assert delivery.ok
    assert sorted(inbox.recipients) == ["jefa@example.com", "jefe@example.com"]
    mail = inbox.mails[0]
    assert mail["Subject"] == MESSAGE.title
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().strip().splitlines() == MESSAGE.body.splitlines()


def test_slack_gets_what_its_webhooks_take(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.slack import NotifySlack

    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{receiver.port}/services")
    assert [delivery.ok for delivery in send(parse_channels(HOOK), MESSAGE, timeout=5)] == [True]
    ((path, body),) = receiver.posts
    assert path == "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7"
    (attachment,) = body["attachments"]
    assert attachment["title"] == MESSAGE.title
    assert attachment["text"] == "Qué pasó: añejos &lt;b&gt; &amp; viejos\nQué hacer: nada"
    assert "icon_url" not in body


def test_a_receiver_that_is_slack_compatible_gets_text(receiver: Receiver) -> None:
    assert send(parse_channels(f"mmost://127.0.0.1:{receiver.port}/3ccdd113474722377935511fc85d3dd4"), MESSAGE, timeout=5)[0].ok
    ((path, body),) = receiver.posts
    assert path == "/hooks/3ccdd113474722377935511fc85d3dd4"
    assert body["text"].split() == f"{MESSAGE.title} {MESSAGE.body}".split()


def test_a_json_webhook_gets_title_and_message(receiver: Receiver) -> None:
    assert send(parse_channels(f"json://127.0.0.1:{receiver.port}/hook?+X-Key=k"), MESSAGE, timeout=5)[0].ok
    ((path, body),) = receiver.posts
    assert (path, body["title"], body["message"], body["type"]) == ("/hook", MESSAGE.title, MESSAGE.body, "failure")


def test_a_channel_that_fails_harms_no_other_and_its_secrets_stay_secret(
    inbox: Inbox, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    inbox.refuse, receiver.status = True, 403
    urls = (
        f"mailto://127.0.0.1:{inbox.port}?from=pulso@example.com&to=jefe@example.com "
        f"json://user:s3cret@127.0.0.1:{receiver.port}/s3cret slack://s3cret json://127.0.0.1:1/s3cret"
    )
    deliveries = send(parse_channels(urls), MESSAGE, timeout=5)
    assert [delivery.ok for delivery in deliveries] == [False] * 4
    assert "403" in deliveries[1].text
    assert "s3cret" not in repr(deliveries)
    # The log of the receiving server does not matter here.
    assert "s3cret" not in "".join(record.getMessage() for record in caplog.records if not record.name.startswith("mail"))
    inbox.refuse, receiver.status = False, 200
    assert [delivery.ok for delivery in send(parse_channels(urls), MESSAGE, timeout=5)] == [True, True, False, False]


def test_a_channel_that_does_not_answer_is_left_after_the_time_out(receiver: Receiver) -> None:
    receiver.delay = 5
    began = time.monotonic()
    deliveries = send(parse_channels(f"json://127.0.0.1:{receiver.port}/slow"), MESSAGE, timeout=0.5)
    assert time.monotonic() - began < 3
    assert not deliveries[0].ok


def test_a_trial_message_says_of_each_channel_how_it_went(inbox: Inbox, receiver: Receiver, make_settings: MakeSettings) -> None:
    settings = make_settings(
        f"mailto://127.0.0.1:{inbox.port}?from=a@example.com json://127.0.0.1:{receiver.port} json://127.0.0.1:1"
    )
    deliveries = try_channels(settings, datetime.now(UTC))
    assert [(delivery.channel, delivery.ok) for delivery in deliveries] == [
        ("mailto://127.0.0.1", True),
        ("json://127.0.0.1", True),
        ("json://127.0.0.1 (2)", False),
    ]
    assert receiver.titles() == ["[Pulso] Mensaje de prueba"]
    assert try_channels(make_settings(""), datetime.now(UTC)) == []
