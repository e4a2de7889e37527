"""Solutions that the tests compare the built-in cases with, from other sources than our solvers."""

import numpy as np


def cole_hopf(x, t, nu, primitive, period=1.0):
    """Return the solution of u_t + u u_x = nu u_xx, by quadrature of Cole's and Hopf's formula.

        u = ∫ (x - y)/t e^(-G / 2nu) dy / ∫ e^(-G / 2nu) dy,   G = primitive(y) + (x - y)² / 2t

    primitive : antiderivative of the initial state, without its mean part; a function on arrays.
    """
    y = np.linspace(-2 * period, 3 * period, 40_001)
    G = primitive(y) + (x[:, None] - y) ** 2 / (2 * t)
    weight = np.exp(-(G - G.min(axis=1, keepdims=True)) / (2 * nu))
    return ((x[:, None] - y) / t * weight).sum(axis=1) / weight.sum(axis=1)


def pulse_between_walls(x, t, x0, *, speed, low, high, signs):
    """Return d'Alembert's solution of a pulse exp(-(x - x0)²) that sets out to the left, with its reflections.

    signs : per wall, -1 where u = 0 and +1 where its derivative vanishes.
    """
    length = high - low

    def leftwards(y):
        turns = np.floor((y - low) / (2 * length))
        place = y - 2 * length * turns
        return np.where(place < high, np.prod(signs) ** turns * np.exp(-((place - x0) ** 2)), 0.0)

    return leftwards(x + speed * t) + signs[0] * leftwards(2 * low - x + speed * t)


def spreading_bump(x, t, *, x0, c, nu, width):
    """Return a Gaussian on a periodic line of length 1 that travels with speed c and spreads."""
    variance = width**2 + 2 * nu * t
    distance = x - x0 - c * t
    images = np.arange(-6, 7)[:, None]
    return width / np.sqrt(variance) * np.exp(-((distance - images) ** 2) / (2 * variance)).sum(axis=0)
