"""Settings shared by all tests."""

import os

from hypothesis import HealthCheck, settings

# Two cores: one BLAS thread a process, so that ranks and workers do not fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# MPICH's UCX writes to standard output of interfaces that go away while it looks, as those of tests with networks do.
os.environ.setdefault("UCX_LOG_LEVEL", "fatal")

# The same examples in every run, and none is a failure because the machine is slow.
settings.register_profile("headrace", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")
