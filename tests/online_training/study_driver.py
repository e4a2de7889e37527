"""A study as a user's script starts it; the test beside it sends the signals.

python study_driver.py RUN_DIR new|resume SETTINGS_AS_JSON

While the file that HEADRACE_TEST_HOLD names exists the trainer takes its time, so that a signal finds it at work.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from headrace.solvers import Case, Grid, Periodic, Uniform

HOLD = "HEADRACE_TEST_HOLD"
SECONDS_PER_SIMULATION = 0.6


def decay(u, d, p, t):
    """∂u/∂t = ν ∇²u - u / 10."""
    return p.nu * d.laplacian(u) - 0.1 * u


def bump(x, p, rng):
    """A bump at (x0, 1/2); where x0 > 0.66 the initial state is not a number."""
    if "HEADRACE_JOB" in os.environ:  # and not where the study looks at the case
        time.sleep(SECONDS_PER_SIMULATION)
    value = np.nan if p.x0 > 0.66 else 1.0
    return value * np.exp(-((x[0] - p.x0) ** 2 + (x[1] - 0.5) ** 2) / 0.05)


case = Case(
    name="slow_decay",
    fields=("u",),
    grid=Grid(shape=(16, 16), extent=(1.0, 1.0)),
    boundary=Periodic(),
    parameters={"nu": Uniform(0.01, 0.05), "x0": Uniform(0.3, 0.7)},
    initial=bump,
    rhs=decay,
    duration=1.0,
    num_snapshots=20,
)


# Every rank of a solver imports this file too, and is not to load torch for it.
if __name__ == "__main__" or "torch" in sys.modules:
    from headrace.surrogates import MLP

    class OwnMLP(MLP):
        """A user's own class: workers and validator find it in the run's copy of this file."""

        def training_loss(self, batch):
            if os.path.exists(os.environ.get(HOLD, "")):
                time.sleep(0.2)
            return super().training_loss(batch)


SETTINGS = {"simulations": 20, "held_out": 3, "ranks": 2, "batch_size": 8, "views": 4.0, "checkpoint_every": 0.5}

if __name__ == "__main__":
    from headrace.online_training import Study

    run_dir, how, changes = sys.argv[1:]
    study = Study(case, OwnMLP(), run_dir=Path(run_dir), **{**SETTINGS, **json.loads(changes)})
    result = study.run(resume=how == "resume")
    print("status", result.status)
    print("validation", result.validation)
