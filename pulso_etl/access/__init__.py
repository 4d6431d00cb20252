"""Who may do what: tokens, roles, and the content of a launch."""
