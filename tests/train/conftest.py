"""Training needs torch, an extra: without it these tests are not collected."""

from __future__ import annotations

import importlib.util

WITHOUT_TORCH = ["test_train_options.py"]
"""What is tested even then."""

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["network/*", "pruning/*", "test_[!t]*.py", "test_train_[!o]*.py"]
