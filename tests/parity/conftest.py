"""Parity with other libraries: run by `make parity`, in an environment of its own; left out elsewhere."""

import os

from others import declare_vision_operators

# Nothing is fetched: the models are small and their weights random.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_HUB_KERNELS", "NO")

WANTED = os.environ.get("FORMWRIGHT_PARITY") == "1"
collect_ignore_glob = [] if WANTED else ["test_*.py"]
if WANTED:
    declare_vision_operators()
