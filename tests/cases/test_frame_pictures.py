"""Pictures of a moving frame: what stands in them, for a flow on a line and one in a plane."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from headrace.cases import frame_pictures, transport
from headrace.surrogates import LPINN, Problem


def surrogate(case, frame):
    """An LPINN whose state is the initial one, carried along."""
    model = LPINN(hidden=(6,), frame=frame)
    model.setup(Problem.of(case))
    model.use_case(case)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(frame_pictures, "STEPS", 3)
    monkeypatch.setattr(frame_pictures, "POINTS", 40)
    monkeypatch.setattr(frame_pictures, "WIDTHS", (4,))
    monkeypatch.setattr(frame_pictures, "landscape", partial(frame_pictures.landscape, size=5))
    monkeypatch.setattr(frame_pictures, "top_directions", partial(frame_pictures.top_directions, steps=3))


def test_a_bell_that_travels_has_one_mode_in_its_frame_and_many_at_rest():
    drawn = frame_pictures.frame_pictures(surrogate(transport.reaction, "galilean"), np.array([5.0, 1.0]))
    assert [name for name, _, _ in drawn] == ["characteristics", "singular-values", "landscape"]
    assert all(png.startswith(b"\x89PNG") for _, png, _ in drawn)
    captions = {name: caption for name, _, caption in drawn}
    assert "1 and 1 modes leave less than 1e-2 and 1e-4 in the frame" in captions["singular-values"]
    assert "smallest Jacobian of the labels is 1, at t = " in captions["characteristics"]
    assert "eulerian" in captions["landscape"] and "galilean" in captions["landscape"]


def test_labels_that_have_crossed_leave_the_landscapes():
    model = surrogate(replace(transport.breaking, duration=1.5), "galilean")
    model.network.labels_at = crossed
    drawn = frame_pictures.frame_pictures(model, np.array([0.0]))
    assert [name for name, _, _ in drawn] == ["landscape"]
    assert drawn[0][2].startswith("Labels have crossed") and "at t = " in drawn[0][2]


def crossed(points):
    raise ArithmeticError("Some places have no label.")


def test_paths_in_a_plane_are_drawn_over_each_other():
    angle = np.linspace(0, np.pi, 20)
    place = np.stack([np.cos(angle), np.sin(angle)])[:, :, None] * np.linspace(0.1, 1, 30)
    assert frame_pictures.characteristics(place, 1.0).startswith(b"\x89PNG")
