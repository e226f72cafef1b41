"""The machine a race runs on: what reports say about it, and how many cores this process may use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


def cores() -> int:
    """How many cores this process may use: its affinity and its container's quota considered."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            count = min(count, max(1, round(int(allowed) / int(period))))
    return count


def accelerators() -> int:
    """How many accelerators torch can train on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1 if torch.backends.mps.is_available() else 0


def describe() -> dict[str, Any]:
    """CPU, cores, memory, device, operating system and versions."""
    import torch

    packages = ("torch", "numpy")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    from formwright import __version__

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "mps" if accelerators() else "cpu"
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": device,
        "os": f"{platform.system()} {platform.release()}",
        "versions": {"formwright": __version__, **versions},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
