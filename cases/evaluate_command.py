"""`headrace evaluate`: the surrogate of a run, measured on its held-out simulations."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from .evaluation import evaluate_held_out, single_sentence
from .run_data import RunData


def evaluate_run(run_dir: Path) -> None:
    """Print the errors of every held-out simulation and over all of them.

    Raises
    ------
    ValueError : there is no model or no held-out simulation yet.
    StudyError : there is no study in this folder.
    """
    data = RunData.read(run_dir)
    evaluation = evaluate_held_out(data)
    if evaluation is None:
        raise ValueError(
            f"{run_dir} has no model and held-out simulations to evaluate yet: train it to the end with "
            "`headrace train ... --resume`, and with --held-out of at least 1."
        )
    baseline = evaluation.baseline_errors
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("simulation", "nRMSE", "VRMSE", "max error"):
        table.add_column(heading, justify="right")
    if baseline is not None:
        table.add_column(f"nRMSE of {evaluation.baseline}", justify="right")
    for index, one in enumerate(evaluation.errors["simulations"]):
        beside = [f"{baseline['simulations'][index]['nrmse']:#.4g}"] if baseline is not None else []
        numbers = (f"{one['nrmse']:#.4g}", f"{one['vrmse']:#.4g}", f"{one['max_error']:#.4g}")
        table.add_row(str(one["simulation"]), *numbers, *beside)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if baseline is not None:
        console.print(evaluation.baseline_sentence())
    console.print(single_sentence(evaluation.errors))
    console.print(f"validation nRMSE {evaluation.errors['nrmse']:#.4g}")
    console.print(f"validation VRMSE {evaluation.errors['vrmse']:#.4g}")
