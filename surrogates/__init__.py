"""Neural surrogates: the models, their losses, files and metrics."""

from .problem import Problem, WindowBatch
from .surrogate import Surrogate

__all__ = ["Problem", "Surrogate", "WindowBatch"]
