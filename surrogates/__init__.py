"""Neural surrogates: the models, their losses, files and metrics."""

from .autoregressive import Autoregressive
from .convnet import ConvNet
from .files import ALL_SURROGATES, load_surrogate
from .fno import FNO
from .lpinn import LPINN as LPINN
from .message_passing import MessagePassing
from .mlp import MLP
from .neuralstagger import NeuralStagger as NeuralStagger
from .problem import Problem, WindowBatch
from .stepping import Stepping
from .surrogate import Surrogate
from .unet import UNet

__all__ = [
    "MLP", "FNO", "UNet", "ConvNet", "MessagePassing", "ALL_SURROGATES", "load_surrogate",
    "Problem", "Surrogate", "WindowBatch", "Autoregressive", "Stepping",
]  # fmt: skip
