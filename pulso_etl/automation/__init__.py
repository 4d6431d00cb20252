"""When to refresh and how to recover: jobs, schedules, sensors, and the pure functions that decide for them."""
