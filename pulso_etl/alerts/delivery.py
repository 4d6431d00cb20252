"""Sends one message to many channels at once, through Apprise. It imports Apprise only when there is something to send."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pulso_etl.alerts.channels import Channel
from pulso_etl.alerts.messages import Message


@dataclass(frozen=True)
class Delivery:
    """The result of a message on one channel. `text` says why it failed, and holds no secret."""

    channel: str
    ok: bool
    text: str


def send(channels: Sequence[Channel], message: Message, *, timeout: float) -> list[Delivery]:
    """Sends to all channels at once, and returns the deliveries in order. Takes at most `timeout` seconds; never raises."""
    if not channels:
        return []
    try:
        return _send(channels, message, timeout)
    except Exception as error:
        # The caller goes on whatever a plug-in does. The error's own text could quote a URL, so it is left out.
        return [Delivery(channel.name, False, type(error).__name__) for channel in channels]


def _send(channels: Sequence[Channel], message: Message, timeout: float) -> list[Delivery]:
    # Both log whole addresses with tokens, in debug lines and for malformed addresses. Our own lines follow from the deliveries.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    import apprise

    # The message contains no image from another server.
    asset = apprise.AppriseAsset(app_id="Pulso ETL", app_desc="Pulso ETL", app_url="", image_url_mask="", service_timeout=timeout)
    sender = apprise.Apprise(asset=asset)
    tags = {f"channel{position}": channel for position, channel in enumerate(channels)}
    for tag, channel in tags.items():
        plugin = apprise.Apprise.instantiate(channel.url.get_secret_value(), asset=asset, tag=tag)
        if isinstance(plugin, apprise.NotifyBase):
            plugin.socket_connect_timeout = plugin.socket_read_timeout = timeout
            sender.add(plugin)
    logger.setLevel(logging.WARNING)
    outcome = sender.notify(
        title=message.title,
        body=message.body,
        notify_type=message.severity,
        body_format=apprise.NotifyFormat.TEXT,
    )
    results = {tag: result for result in outcome.results for tag in result.tag}
    return [_delivery(channel, results.get(tag), timeout) for tag, channel in tags.items()]


def _delivery(channel: Channel, result: object, timeout: float) -> Delivery:
    from apprise.result import AppriseResultStatus, NotifyResult

    if not isinstance(result, NotifyResult) or not result.attempts:
        return Delivery(channel.name, False, "the URL is not complete: see Apprise's page on its scheme")
    last = result.attempts[-1]
    if last:
        return Delivery(channel.name, True, "delivered")
    if last.status is AppriseResultStatus.TIMEOUT:
        return Delivery(channel.name, False, f"no answer within {timeout:g} s")
    reason = next((entry.message for entry in reversed(list(last)) if entry.level in ("WARNING", "ERROR")), "refused")
    return Delivery(channel.name, False, channel.without_secrets(reason))
