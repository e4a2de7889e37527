"""An intake in a process of its own, to be killed: python intake_process.py RUN_DIR; prints its addresses."""

import sys
import time

from headrace.online_training.intake_actor import build_intake
from headrace.online_training.run_directory import RunDirectory

if __name__ == "__main__":
    intake = build_intake(RunDirectory(sys.argv[1]), session=1)
    intake.start()
    print(intake.addresses, flush=True)
    while True:
        time.sleep(60)
