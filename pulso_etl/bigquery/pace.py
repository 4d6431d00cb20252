"""How fast looks may follow each other: a bound on their requests, and waits after BigQuery has refused one."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict

FIRST_WAIT = timedelta(minutes=1)
LONGEST_WAIT = timedelta(hours=1)


class Pace(BaseModel):
    """What is known of the requests of earlier looks. Instants are by one clock, that of the caller. Pure.

    `sent`: how many requests looks have sent in the minute that began at `minute`. `refusals`: how many in a row BigQuery has
    refused, or not answered; the last one for the reason `refusal`. Until `resume_at` no look asks again.
    """

    model_config = ConfigDict(frozen=True)

    minute: AwareDatetime | None = None
    sent: int = 0
    refusals: int = 0
    refusal: str = ""
    resume_at: AwareDatetime | None = None

    def halt(self, now: datetime, most: int) -> str:
        """Why no look may ask at this instant, if at most `most` requests a minute are allowed; empty if one may."""
        if self.backs_off(now):
            assert self.resume_at is not None
            times = f"{self.refusals} refusals in a row" if self.refusals > 1 else "a refusal"
            return f"looks wait until {self.resume_at:%Y-%m-%d %H:%M:%S %Z} after {times}: {self.refusal}"
        if self.minute == _minute(now) and self.sent >= most:
            return f"the looks of this minute have sent {self.sent} requests; the next minute goes on"
        return ""

    def backs_off(self, now: datetime) -> bool:
        """Whether looks wait because of a refusal."""
        # A wait that is longer than the longest comes from a wrong clock.
        return self.resume_at is not None and now < self.resume_at <= now + LONGEST_WAIT

    def after(self, requests: int, now: datetime) -> Pace:
        """After a look that BigQuery has answered, with so many requests."""
        return Pace(**self._counted(requests, now))

    def refused(self, why: str, now: datetime) -> Pace:
        """After a look that BigQuery has refused or not answered. Each further refusal doubles the wait."""
        wait = min(FIRST_WAIT * (1 << min(self.refusals, 20)), LONGEST_WAIT)
        return Pace(**self._counted(1, now), refusals=self.refusals + 1, refusal=why[:200], resume_at=now + wait)

    def _counted(self, requests: int, now: datetime) -> dict[str, object]:
        minute = _minute(now)
        return {"minute": minute, "sent": requests + (self.sent if self.minute == minute else 0)}


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)
