"""Repair a pruned network without training: refit what is left so that outputs are what they were."""
