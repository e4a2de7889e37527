"""Arrays as arguments of calls of a Ray actor that copies them into memory of its own, as a rival of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from lines import median_seconds


def ray_calls(quick: bool, memory: int) -> Iterator[dict[str, Any]]:
    """Yield the speed of a Ray actor that takes arrays as arguments and copies them into memory of its own."""
    try:
        import ray
    except ImportError:
        yield {"name": "ray", "value": None, "unit": "MB/s", "baseline": None, "setup": "baseline: not run"}
        return

    class Taker:
        def __init__(self) -> None:
            self._memory, self._place = np.zeros(memory, np.uint8), 0

        def take(self, values: np.ndarray) -> None:
            frame = values.reshape(-1).view(np.uint8)
            self._place = self._place if self._place + frame.size <= len(self._memory) else 0
            self._memory[self._place : self._place + frame.size] = frame
            self._place += frame.size

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        taker = ray.remote(Taker).remote()
        shapes = ((128, 128), (512, 512), (1024, 1024), (4096, 2048))
        for rows, columns in shapes[1:2] if quick else shapes:
            values = np.random.default_rng(0).random((rows, columns), np.float32)
            count = min(max(8, (64 if quick else 1024) * 2**20 // values.nbytes), 300 if quick else 4000)

            def work(values: np.ndarray = values, count: int = count) -> None:
                running: list[Any] = []
                for _ in range(count):
                    if len(running) == 8:
                        ray.get(running.pop(0))
                    running.append(taker.take.remote(values))
                ray.get(running)

            seconds = median_seconds(work, 1 if quick else 3)
            size = f"{values.nbytes // 2**20} MiB" if values.nbytes >= 2**20 else f"{values.nbytes // 2**10} KiB"
            setup = f"ray {ray.__version__}, {count} calls, 8 on the way, no authentication, no checksum"
            for what, value, unit in (("bytes", count * values.nbytes / 1e6, "MB/s"), ("calls", count, "1/s")):
                yield {"name": f"ray {size}: {what}", "value": value / seconds, "unit": unit, "baseline": None,
                       "setup": setup}  # fmt: skip
    finally:
        ray.shutdown()
