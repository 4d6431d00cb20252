"""Alerts: incidents gathered from failures, kept in PostgreSQL, and told once over e-mail, Slack or a JSON webhook.

`service.Alerts` is what sensors call; `incidents` decides, `messages` words, `channels` sends, `store` keeps.
"""
