"""Neural surrogates: the models, their losses, files and metrics."""

from .autoregressive import Autoregressive
from .files import ALL_SURROGATES, load_surrogate
from .fno import FNO
from .mlp import MLP
from .problem import Problem, WindowBatch
from .stepping import Stepping
from .surrogate import Surrogate

__all__ = ["MLP", "FNO", "ALL_SURROGATES", "load_surrogate", "Problem", "Surrogate", "WindowBatch",
           "Autoregressive", "Stepping"]  # fmt: skip
