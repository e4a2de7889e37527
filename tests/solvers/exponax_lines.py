"""Makes exponax_lines.npz: Burgers, Kuramoto-Sivashinsky and Gray-Scott by exponax, an independent spectral code.

    python -m venv .rivals/exponax && .rivals/exponax/bin/pip install exponax==0.2.0
    .rivals/exponax/bin/python tests/solvers/exponax_lines.py

The initial states are the functions below, on finer grids than those of the cases; every stride-th point is stored.
"""

from pathlib import Path

import numpy as np

BURGERS_VISCOSITY, BURGERS_DURATION = 0.01, 0.5
KS_LENGTH, KS_DURATION = 64.0, 20.0
SIDE, FEED, KILL, GRAY_SCOTT_DURATION = 1.25, 0.04, 0.06, 40.0


def burgers_initial(x):
    """Waves that steepen."""
    return np.sin(2 * np.pi * x) + 0.3 * np.cos(4 * np.pi * x + 1)


def kuramoto_sivashinsky_initial(x):
    """Two long waves."""
    return np.cos(2 * np.pi * x / KS_LENGTH) * (1 + np.sin(6 * np.pi * x / KS_LENGTH))


def gray_scott_initial(x, y):
    """Two smooth drops on the torus."""
    drops = 0
    for a, b in ((0.4, 0.5), (0.8, 0.7)):
        distance = np.sin(np.pi * (x - a) / SIDE) ** 2 + np.sin(np.pi * (y - b) / SIDE) ** 2
        drops = drops + np.exp(-distance / 0.03)
    return 1 - 0.5 * drops, 0.25 * drops


def march(stepper, state, steps):
    """Return the state after a number of steps."""
    import exponax

    return np.asarray(exponax.repeat(stepper, steps)(state))


def main():
    import exponax
    import jax

    jax.config.update("jax_enable_x64", True)
    n, steps = 1024, 2000
    x = np.arange(n) / n
    burgers = exponax.stepper.Burgers(1, 1.0, n, BURGERS_DURATION / steps, diffusivity=BURGERS_VISCOSITY, order=4)
    found = {"burgers": march(burgers, burgers_initial(x)[None], steps)[0, ::16]}
    n, steps = 512, 2000
    x = KS_LENGTH * np.arange(n) / n
    ks = exponax.stepper.KuramotoSivashinskyConservative(1, KS_LENGTH, n, KS_DURATION / steps, order=4)
    found["kuramoto_sivashinsky"] = march(ks, kuramoto_sivashinsky_initial(x)[None], steps)[0, ::8]
    n, steps = 384, 400
    x = SIDE * np.arange(n) / n
    reaction = exponax.stepper.reaction.GrayScott(
        2, SIDE, n, GRAY_SCOTT_DURATION / steps, diffusivity_1=2e-5, diffusivity_2=1e-5, feed_rate=FEED, kill_rate=KILL,
        order=4,
    )  # fmt: skip
    found["gray_scott"] = march(reaction, np.stack(gray_scott_initial(x[:, None], x[None, :])), steps)[:, ::12, ::12]
    np.savez(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main()
