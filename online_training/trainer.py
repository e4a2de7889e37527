"""The trainer: Ray Train starts, watches and restarts the workers that run the training loop."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .placement import CPU_PER_WORKER
from .training_loop import TrainerSettings, connect

if TYPE_CHECKING:
    from .feed import Feed

logger = logging.getLogger(__name__)

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class TrainerDied(RuntimeError):
    """The workers were cut off, or failed in a way that a restart might mend; more often than is allowed."""


def run_trainer(
    settings: TrainerSettings,
    workers: int | tuple[int, int],
    max_failures: int,
    *,
    pinned_to: Mapping[str, float] | None = None,
    spread: bool = False,
    connect: Callable[[TrainerSettings], Feed] = connect,
) -> dict[str, Any]:
    """Train on a number of Ray Train workers until the stream ends, and return what `train` returns on worker 0.

    Ray must be initialised. A worker that dies takes the others with it; all start again from the newest
    checkpoint under the next generation. Samples, checkpoints and metrics do not pass through Ray.

    settings : generation, rank and num_ranks are set here, per start and worker.
    workers : how many; (least, most): as many as Ray has room for at each start, and again when that changes. The
        global batches are the same for any number of workers.
    max_failures : restarts before giving up.
    pinned_to : resources of Ray that each worker asks for too, as those that only one node has; None: any node.
    spread : over as many nodes as there are; else on as few as hold them.
    connect : makes the feed of each worker; a function of a module that the workers can import.

    Raises
    ------
    TrainerDied : the workers failed too often; holds their last words.
    RuntimeError : they failed in a way that a restart does not mend.
    ValueError : the batch cannot be dealt to the workers.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from .worker_group import FileRendezvous, leave_out_unused

    most = workers if isinstance(workers, int) else workers[1]
    replace(settings, num_ranks=most)  # refuses a batch that cannot be dealt, here and not in every worker
    on_gpu = settings.device.startswith("cuda")
    trainer = TorchTrainer(
        _work,
        # By name: Ray's controller reads this in a process of its own, which has no need of torch and what is ours.
        train_loop_config={"settings": asdict(settings), "connect": (connect.__module__, connect.__name__)},
        torch_config=FileRendezvous(
            backend="nccl" if on_gpu else "gloo", folder=str(Path(settings.run_dir, "secrets").absolute())
        ),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=on_gpu, placement_strategy="SPREAD" if spread else "PACK",
            resources_per_worker={"CPU": CPU_PER_WORKER, "GPU": int(on_gpu), **(pinned_to or {})},
        ),
        run_config=RunConfig(
            name="ray-train", storage_path=str(Path(settings.run_dir, "logs").absolute()),
            failure_config=FailureConfig(max_failures=max_failures),
            worker_runtime_env={"env_vars": _worker_environment(settings)},
        ),
    )  # fmt: skip
    _quieten()
    leave_out_unused(trainer)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainerDied(_last_words(error, max_failures)) from error
    outcome = _newest_outcome(settings)
    if "error" in outcome:
        raise RuntimeError(outcome["error"])
    return outcome


def claim_generation(run_dir: str | Path, session: int = 0) -> int:
    """Return the next generation of the trainer in a run directory; no two callers ever get the same.

    session : of the study, written down as the claimant.
    """
    folder = Path(run_dir) / "generations"
    folder.mkdir(exist_ok=True)
    generation = 1 + max((int(path.stem) for path in folder.iterdir()), default=0)
    while True:
        try:
            with open(folder / str(generation), "x", encoding="ascii") as file:
                file.write(str(session))
            return generation
        except FileExistsError:
            generation += 1


def _work(config: dict[str, Any]) -> None:
    """Run the training loop in a Ray Train worker; an error that would only come again ends the run at once."""
    import ray.train
    import torch

    from .agreement import Workers
    from .training_loop import train

    context = ray.train.get_context()
    settings = replace(
        TrainerSettings(**config["settings"]), rank=context.get_world_rank(), num_ranks=context.get_world_size()
    )
    if settings.device == "cuda":
        settings = replace(settings, device=str(ray.train.torch.get_device()))
    module, name = config["connect"]
    connect = getattr(importlib.import_module(module), name)
    workers = Workers(settings.rank, settings.num_ranks)
    generation = workers.from_first(
        claim_generation(settings.run_dir, settings.session) if settings.rank == 0 else 0
    )  # fmt: skip
    outcome = Path(settings.run_dir, "generations", f"{generation}.json")
    try:
        settings = replace(settings, generation=generation)
        summary = train(settings, connect(settings))
        if settings.rank == 0:
            _leave(outcome, summary)
    except Exception as error:
        hopeless = isinstance(error, FloatingPointError | ValueError) or getattr(error, "errno", None) in _FULL_DISK
        if hopeless or (isinstance(error, ConnectionError) and not _intake_lives(settings)):
            _leave(outcome, {"error": str(error)})
        if settings.num_ranks > 1:
            # Wakes the workers that wait for this one; they find its reason beside the generation.
            torch.distributed.destroy_process_group()
        if not outcome.exists():
            raise


def _intake_lives(settings: TrainerSettings) -> bool:
    """Whether a broken connection may be made again, because its other end is still there."""
    import ray

    from .session_plan import NAMESPACE, intake_name

    try:
        intake = ray.get_actor(intake_name(settings.study, settings.session), namespace=NAMESPACE)
        ray.get(intake.status.remote(), timeout=60)
    except (ValueError, ray.exceptions.RayError):
        return False
    return True


def _leave(path: Path, outcome: dict[str, Any]) -> None:
    """Write how a generation ended; the first worker to say so is heard. (Ray before 2.55 returns nothing.)"""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(outcome), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()


def _newest_outcome(settings: TrainerSettings) -> dict[str, Any]:
    """Return how the session's last generation ended; a trainer of another session may still be on its way out."""
    generations = Path(settings.run_dir, "generations")
    claims = [path for path in generations.iterdir() if path.name.isdigit()]
    newest = max((int(path.name) for path in claims if path.read_text() == str(settings.session)), default=0)
    try:
        return json.loads((generations / f"{newest}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainerDied(
            f"Trainer generation {newest} was cut short before it could say how it ended. Resume the study."
        ) from None


def _worker_environment(settings: TrainerSettings) -> dict[str, str]:
    """Ray would set OMP_NUM_THREADS from its own idea of CPUs; the study decides, since solvers share the node."""
    threads = str(settings.threads)
    return {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def _quieten() -> None:
    """Keep Ray's own progress messages out of ours; its warnings and errors stay."""
    for name in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _last_words(error: Exception, max_failures: int) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    words = "; ".join(f"worker {rank}: {failure}" for rank, failure in sorted(failures.items())) or str(error)
    return f"The trainer failed {max_failures + 1} times and was not started again. Its last words: {words}"
