"""Training needs torch, an extra: without it these tests are not collected."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

WITHOUT_TORCH = ["test_options.py"]
"""What is tested even then."""

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["network/*", "pruning/*", "test_[!o]*.py"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The fastest for tensors this small."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
