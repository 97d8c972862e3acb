"""How many cores this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from math import ceil
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))


def usable_cores() -> int:
    """Physical cores that the process may run on: its affinity, and what its container is allowed, at least 1.

    onnxruntime counts the cores of the whole machine, of which a container or ``taskset`` may leave few: more threads
    than cores wait for one another.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return max(1, os.cpu_count() or 1)
    cores = {_core(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota() or len(cores)))


def _core(cpu: int) -> tuple[str, str]:
    """What the logical processors of one core have in common."""
    topology = _TOPOLOGY / f"cpu{cpu}" / "topology"
    with suppress(OSError):
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    return "", str(cpu)


def _quota() -> int | None:
    """Cores' worth of time that a control group allows; None where it does not say."""
    with suppress(OSError, ValueError):
        quota, period = _QUOTAS[0].read_text().split()
        return None if quota == "max" else max(1, ceil(int(quota) / int(period)))
    with suppress(OSError, ValueError):
        allowed, each = (int(file.read_text()) for file in (_QUOTAS[1], _QUOTAS[1].parent / "cpu.cfs_period_us"))
        return None if allowed < 0 else max(1, ceil(allowed / each))
    return None
