"""Everything that is timed: one command per table."""
