"""Before any test module is imported."""

import os

# pytest-xdist runs a process for each core; their threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
