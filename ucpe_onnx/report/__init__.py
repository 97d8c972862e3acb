"""What a run tells: numbers before and after, what was frozen and why, as a table, JSON or HTML."""
