"""One thread a test process: the tensors of tests are small, and pytest-xdist runs a process for each core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
