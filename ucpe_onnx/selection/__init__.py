"""Score and select: criteria from weights and from samples, and the masks that follow from scores."""
