"""What several tests of surrogates ask for."""

import importlib
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def loaded():
    """Return a function that imports a benchmark by its name; their folder is no package."""

    def load(name):
        folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)

    return load
