"""Run with the_well installed: opens a data set with its own reader and prints what arrives, as JSON."""

import json
import sys

from the_well.data import WellDataset
from the_well.data.normalization import ZScoreNormalization


def main(folder):
    data = WellDataset(path=folder, well_split_name="train", n_steps_input=1, n_steps_output=2)
    last = data[len(data) - 1]
    scaled = WellDataset(
        path=folder, well_split_name="train", use_normalization=True, normalization_type=ZScoreNormalization,
        full_trajectory_mode=True,
    )  # fmt: skip
    whole = [scaled[n] for n in range(len(scaled))]
    told = {
        "names": data.metadata.field_names[0], "scalars": data.metadata.constant_scalar_names, "samples": len(data),
        "input": list(last["input_fields"].shape), "output": last["output_fields"].double().tolist(),
        "parameters": last["constant_scalars"].tolist(), "boundary": last["boundary_conditions"].tolist(),
        "grid": last["space_grid"].tolist(), "time": last["output_time_grid"].tolist(),
        "scaled": [float(sum(one["output_fields"].mean() for one in whole) / len(whole))],
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
