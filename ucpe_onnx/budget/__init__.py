"""Choose what to prune so that a budget of latency, multiply-accumulates or parameters is met at the least loss."""
