"""Adam without torch's compiler."""

from __future__ import annotations

from inspect import unwrap

import torch


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` to the bit, for steps that are not compiled.

    torch wraps these methods to keep its compiler out of them, and imports all of it for that: 2 s of a core in every
    worker before its first batch. Where torch wraps others besides, it is imported again, and nothing else changes.
    """

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    zero_grad = unwrap(torch.optim.Adam.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
