"""Who may do what: tokens, roles, and what a launch may say."""
