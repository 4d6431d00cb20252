"""The ways to bring rows into a table. Each plan says when it applies, stages the rows, and writes them."""
