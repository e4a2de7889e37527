"""What TF32 and bfloat16 cost in accuracy: the same network trained the same way in three precisions.

    python benchmarks/precision.py [--quick] [--device cpu|cuda] [--seeds 0 1 2] [--steps N] [--resume]

Navier-Stokes at nu = 1e-3 as in `tables.py`, fewer simulations: FNO-2D with modes 8 and width 20, trained through
roll-outs of ten frames on the relative L2, tested from ten frames to the 40 that follow. All precisions see the same
data, first weights and order of batches for each seed, and as many steps. The error is the relative L2 of held-out
roll-outs, predicted in the precision of the training. Products are of float32 (`fp32`), of TF32 (`tf32`), or layers run
under autocast in bfloat16 (`bf16`); spectra are summed in float32 in all of them. TF32 exists on a GPU only: on a CPU
it is float32.

One JSON line per training and one per precision, also in benchmarks/results/precision-DEVICE.json.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from fno import PRECISIONS
from lines import Report, flags, processor
from published.data import Trajectories
from published.training import Run
from tables import TABLES, Table, error, losses, prepared


def trained(
    table: Table, data: tuple[Trajectories, Trajectories], precision: str, seed: int, options: Any
) -> float:
    """Train one network; return its error on held-out roll-outs."""
    seen, held_out = data
    network = prepared(table, seen, seed, quick=options.quick)
    torch.manual_seed(seed)
    device = torch.device(options.device)

    def autocast() -> torch.autocast:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    options_of_loss, windows = losses(table, network, seen)

    def loss(index: torch.Tensor) -> torch.Tensor:
        with autocast():
            return options_of_loss[0](index)

    Run(network, [loss], windows, table.plan, seed=seed).train(options.steps)
    with autocast():
        return error(table, network.history, held_out, network)


def main() -> None:
    """Measure and print one JSON line per figure."""
    parser = flags(__doc__, (), devices=("cpu", "cuda"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    options = parser.parse_args()
    quick = options.quick
    if quick:
        options.seeds, options.steps = options.seeds[:1], 2
    count, held = (20, 2) if quick else (400, 100)
    where = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    report = Report("precision", device=options.device, quick=quick, resume=options.resume)
    table = TABLES["ns-1e-3"]
    seen, held_out = (table.generate(number, seed, options.device, quick) for number, seed in ((count, 1), (held, 2)))
    setup = f"{count} simulations, {options.steps} steps of {table.plan.batch}"
    for precision in PRECISIONS:
        more = {"device": where, "precision": precision, "setup": setup}
        for seed in options.seeds:
            if not report.has(f"{precision} seed {seed}"):
                value = trained(table, (seen, held_out), precision, seed, options)
                report.add(f"{precision} seed {seed}", value, "1", seeds=[seed], **more)
        values = {word: [line["value"] for line in report.lines if line["name"].startswith(f"{word} seed ")]
                  for word in ("fp32", precision)}  # fmt: skip
        pairs = [b / a for a, b in zip(values["fp32"], values[precision], strict=False)]
        report.add(f"{precision} mean", statistics.fmean(values[precision]), "1", seeds=len(values[precision]),
                   baseline=statistics.fmean(values["fp32"]), **more)  # fmt: skip
        report.add(f"{precision} over fp32", statistics.fmean(pairs), "x", seeds=len(pairs), baseline=1.0,
                   **{**more, "setup": f"{setup}; by seed {', '.join(f'{pair:.4f}' for pair in pairs)}"})  # fmt: skip


if __name__ == "__main__":
    main()
