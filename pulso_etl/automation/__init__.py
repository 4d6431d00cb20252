"""When to refresh and how to recover: jobs, schedules, sensors, and the pure decisions that they carry out."""
