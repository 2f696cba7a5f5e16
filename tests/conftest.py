"""What all tests share: one thread a process, and the same examples of properties at every run."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# HYPOTHESIS_PROFILE=random looks for other examples at every run; what it finds becomes an @example.
# A machine that does other things as well may take long over an example: that is no fault of it.
settings.register_profile("random", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
