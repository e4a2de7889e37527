"""Settings shared by all tests."""

import os

# Two cores: one BLAS thread a process, so that ranks and workers do not fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
