"""The memory that a call needs on top of what was there: inputs, weights and what lives already are not counted.

    peak = max resident during the call - resident before it        CPU, Linux
    peak = max allocated during the call - allocated before it      CUDA

On Linux the kernel's high-water mark (VmHWM) is set back before the call, after the free memory of Python and the C
library was returned. During the call glibc maps every block of 64 KiB and more by itself, so that freed blocks leave at
once and the figure is of what lives, not of how a heap came to be cut; afterwards it maps blocks from 32 MiB, where its
own adjustment ends in a process that uses large tensors. The call runs in a thread of its own, since glibc would first
fill the holes that earlier work left in this thread's heap, and what fills a hole stays resident when freed.

Where the mark can't be set back (some containers, macOS), that of the whole life of the process (ru_maxrss) has to do:
it tells the peak only if the call needed more than anything before it; else the answer is None, unknown. The kernel
counts in batches, so differences below about a megabyte mean nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
KIB = 1024
MOST = 2**31 - 1  # the largest number that mallopt takes


def peak_memory(call: Callable[[], object], device: str | torch.device = "cpu", *, warm_up: bool = True) -> int | None:
    """Bytes that `call()` needs at its peak above what is resident when it begins; None where the system can't tell.
    With `warm_up` it is called once before, so that libraries' own first-time memory is not counted."""
    gc.collect()
    if torch.device(device).type == "cuda":
        if warm_up:
            call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _blocks_apart(), ThreadPoolExecutor(1) as thread:
        gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        def measured() -> int | None:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                if warm_up:
                    call()
                _return_free_memory()
                return _resident_peak(call)

        return thread.submit(measured).result()


def _resident_peak(call: Callable[[], object]) -> int | None:
    if _reset_high_water():
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    before, highest = _resident(), _highest_ever()
    call()
    after = _highest_ever()
    return after - before if before is not None and after > highest else None


def _return_free_memory() -> None:
    """Ask the C library to give free memory back to the system, where it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory(keep: bool = True) -> None:
    """Have glibc keep what is freed for the next call, before times are taken. Else it gives blocks of 32 MiB and more
    back at once (`keep=False`: again), and what is timed of a call that needs such ones is to a good part the kernel's
    clearing of new pages: a step in the growth with N, wherever tensors come to be as large. Other C libraries are left
    as they are."""
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is not None:
        options(MMAP_THRESHOLD, MOST if keep else 32 * KIB * KIB)
        options(TRIM_THRESHOLD, MOST if keep else 64 * KIB * KIB)


@contextlib.contextmanager
def _blocks_apart() -> Iterator[None]:
    """Have glibc map large blocks one by one; other C libraries are left as they are."""
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is None:
        yield
        return
    options(MMAP_THRESHOLD, 64 * KIB)
    try:
        yield
    finally:
        keep_freed_memory(False)


def _reset_high_water() -> bool:
    """Set VmHWM to the present VmRSS; False where that can't be done."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    return 1024 * int(re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)[1])


def _resident() -> int | None:
    return _status("VmRSS") if STATUS.exists() else None


def _highest_ever() -> int:
    """ru_maxrss in bytes: kilobytes on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
