"""Alerts: gathers failures as incidents, keeps them in PostgreSQL, and sends them once by e-mail, Slack or a JSON webhook.

Sensors call `service.Alerts`. `incidents` decides, `messages` finds the words, `channels` and `delivery` send, `store` keeps.

    alerts = Alerts(load_settings())
    alerts.flush(
        now,
        [
            Failed(Cause.SOURCE_UNAVAILABLE, "operation_data", at, window=DayRange(first, last), run_id=run_id, detail=text),
            succeeded("dashboard_data", at),
            Failed(State.STALE, "assignment_data", now),
            Recovered({State.CHECK}, "dashboard_data", at, "no_gaps"),
        ],
    )
"""
