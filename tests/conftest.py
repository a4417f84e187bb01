"""Before any test module is imported."""

import os

# pytest-xdist runs a process for each core; their threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.miniature import make_family


@pytest.fixture(autouse=True)
def as_many_threads():
    """A test that sets PyTorch's threads leaves them as they were: sums depend on how they are shared out."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of a module's miniature models."""
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def settings(root):
    """A native run with miniature models; a module with other models or settings has its own."""
    return make_family(root)
