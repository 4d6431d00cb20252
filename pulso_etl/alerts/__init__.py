"""Alerts: incidents gathered from failures, kept in PostgreSQL, and told once over e-mail, Slack or a JSON webhook.

`service.Alerts` is what sensors call; `incidents` decides, `messages` words, `channels` and `delivery` send, `store` keeps.

    alerts = Alerts(load_settings())
    alerts.flush(
        now,
        [
            Failed(failure_cause(attempt.cause), "operation_data", at, window=DayRange(first, last), run_id=run_id, detail=text),
            succeeded("dashboard_data", at),
            Failed(Cause.STALE, "assignment_data", now),
            Recovered({Cause.CHECK}, "dashboard_data", at, "no_gaps"),
        ],
    )
"""
