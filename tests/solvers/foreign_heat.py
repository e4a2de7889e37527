"""A program that knows nothing of headrace: explicit heat on a periodic line, files by numpy.

python foreign_heat.py NU NX [fail-at STEP | wait-for FILE | skip STEP]
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def main(nu, nx, behaviour="", argument=""):
    given = json.loads(Path("input.json").read_text())
    u, times = np.load("initial.npy"), given["times"]
    h, interval = given["extent"][0] / int(nx), times[1] - times[0]
    for step in range(len(times)):
        if behaviour == "fail-at" and step == int(argument):
            sys.exit("the mesh is tangled")
        if behaviour != "skip" or step != int(argument):
            np.save(f"snapshot-{step:06d}.npy", u if behaviour != "wrong" else u[:, 1:])
        if behaviour == "wait-for" and step == 2:
            while not Path(argument).exists():
                time.sleep(0.01)
        for _ in range(20):
            u = u + float(nu) * interval / 20 * (np.roll(u, 1, -1) - 2 * u + np.roll(u, -1, -1)) / h**2


main(*sys.argv[1:])
