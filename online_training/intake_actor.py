"""The intake as a named, detached Ray actor: it outlives the trainers, and its node is Ray's to choose."""

from __future__ import annotations

from typing import Any

import ray

NAMESPACE = "headrace"


@ray.remote(num_cpus=0, max_restarts=0)
class IntakeActor:
    """Holds one `Intake`; the intake's loop runs in a thread of its own, so that calls never delay the stream."""

    def __init__(self, plan: dict[str, Any]) -> None:
        from .intake_setup import build_intake

        self._intake = build_intake(plan)

    def start(self) -> str:
        """Bind the sockets and return the addresses, best first, separated by commas."""
        self._intake.start()
        return self._intake.addresses

    def status(self) -> dict[str, Any]:
        """Return the intake's status as plain data."""
        return self._intake.status()

    def job_ended(self, job: str, code: int) -> list[int]:
        """Tell the intake that a solver job is gone; return the simulations that run again."""
        return self._intake.job_ended(job, code)

    def request_stop(self) -> None:
        """End the stream early, in order."""
        self._intake.request_stop()

    def close(self) -> None:
        """Unlink the shared memory and close sockets and logs."""
        self._intake.close()
