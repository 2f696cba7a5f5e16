"""What all tests share: one thread a process, and small models made on the spot."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
