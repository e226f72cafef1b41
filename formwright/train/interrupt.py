"""Ctrl-C between steps, never inside one.

An update that is broken off half-way leaves weights that belong to no step. While `busy`, the first Ctrl-C is kept and
raised at the step's end; the second is raised at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Interrupt:
    """busy: an update is under way. pending: a Ctrl-C came meanwhile."""

    busy: bool = False
    pending: bool = False

    def on_signal(self, signum: int, frame: object) -> None:
        """Take a Ctrl-C in."""
        if self.busy and not self.pending:
            self.pending = True
        else:
            raise KeyboardInterrupt

    def done(self) -> None:
        """The update is complete; raises KeyboardInterrupt if a Ctrl-C waited for it."""
        self.busy = False
        if self.pending:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Treat Ctrl-C as above. A caller's own SIGINT handler is left in charge, and other threads get no signals."""
    interrupt = Interrupt()
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours:
        yield interrupt
        return
    signal.signal(signal.SIGINT, interrupt.on_signal)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
