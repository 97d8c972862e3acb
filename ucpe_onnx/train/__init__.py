"""Pruning while training: everything here needs torch, which the extra ``train`` installs; nothing else does."""
