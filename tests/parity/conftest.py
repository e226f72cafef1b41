"""Parity with Hugging Face transformers: run by `make parity`, in an environment of its own; left out elsewhere."""

import os

# Nothing is fetched: the models are small and their weights random.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_HUB_KERNELS", "NO")

collect_ignore_glob = [] if os.environ.get("FORMWRIGHT_PARITY") == "1" else ["test_*.py"]
