"""Before any test module is imported."""

import os

# pytest-xdist runs a process for each core; their threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def as_many_threads():
    """A test that sets PyTorch's threads leaves them as they were: sums depend on how they are shared out."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
