"""What models are trained on: a user's files, real data that are already on the machine, synthetic tasks.

source = formwright.data.open("notes.txt", length=256)
batch = source.batch("train", step=0, size=32)
"""

from formwright.data.opening import open_source as open
from formwright.data.source import SPLITS, Batch, DataError, Source

__all__ = ["SPLITS", "Batch", "DataError", "Source", "bundled_names", "open"]


def bundled_names() -> dict[str, str]:
    """Name -> one line on what it is, of every bundled source and synthetic task."""
    from formwright.data.bundled import NAMES
    from formwright.data.tasks import TASKS

    tasks = {name: "task: " + (function.__doc__ or "").split(". ")[0] for name, function in TASKS.items()}
    return {**NAMES, **tasks}
