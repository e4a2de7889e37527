"""One small network per part of a stagger: all of them in one batched call, or one alone at its coarse resolution."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch.func import functional_call, stack_module_state, vmap

from . import fused_unet
from .autoregressive import box_position
from .stagger import Stagger
from .unet import UNetwork

READINGS = ("phase", "offset")


class StaggeredNetwork(torch.nn.Module):
    """A window of s_t frames -> the next s_t frames, each part of it by a network that sees this part only.

    Reading "phase": part (k, i, ...) carries its own frames k, k + s_t, ...; there are s_t chains in time. Reading
    "offset": every part starts from the last frame, and part (k, i, ...) gives the frame k + 1 steps later. Networks
    give changes. With one part this is the plain network, called once.

    Parameters
    ----------
    make : inputs -> a network (batch, inputs, *coarse) -> (batch, fields, *coarse); one per part, or one if shared.
    stagger, fields : the decomposition, and the fields of a state.
    reading : of the factor in time.
    shared : one network for all parts, which are told apart by `embedding` learned numbers each; with 0 they are not,
        which is right only where no place differs from another.
    exchange : learned mixtures of the neighbouring parts at the same coarse point that every network sees as well
        (beyond the paper). Parts then no longer run alone.
    conditions : numbers of each sample that every network sees at all points, such as the parameters of the equation.
    guess : a classical step of every part by itself, (parts, batch, fields, *coarse) and the part's index, or None for
        all of them -> the same shape; networks then see its changes too and correct them (beyond the paper).
    position : per axis, whether it is periodic: networks then see where their points lie in the full box; None: not.
    scale : size of the states; inputs are divided by it and changes multiplied.
    gain : size of the changes over that of the states, for corrections that are small.
    streams : networks with weights of their own are one batched call (0), or one after another (1), each with the
        kernels of the plain network, or on a GPU dealt to so many streams, which are branches in a CUDA graph. U-Nets
        that `fused_unet` knows are one batched call on a GPU without gradients, which copies no weights from 1 on.
    """

    def __init__(  # noqa: PLR0913
        self, make: Callable[[int], torch.nn.Module], stagger: Stagger, *, fields: int = 1, reading: str = "phase",
        shared: bool = False, embedding: int = 4, exchange: int = 0, conditions: int = 0,
        guess: Callable[[torch.Tensor, int | None], torch.Tensor] | None = None,
        position: Sequence[bool] | None = None, scale: float = 1.0, gain: float = 1.0,
        streams: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if reading not in READINGS:
            raise ValueError(f"Reading {reading!r} of the factor in time is not one of {', '.join(READINGS)}.")
        self.stagger, self.reading, self.shared, self.guess = stagger, reading, shared, guess
        self.streams = streams
        self.scale, self._change = scale, scale * gain
        told = embedding if shared else 0
        self.periodic = None if position is None else tuple(bool(closed) for closed in position)
        placed = 0 if self.periodic is None else len(self.periodic) + sum(self.periodic)
        inputs = fields * (1 + exchange + (guess is not None)) + told + placed + conditions
        self.embedding = torch.nn.Parameter(torch.randn(stagger.parts, told)) if told else None
        self.mixing = torch.nn.Parameter(
            torch.randn(exchange, stagger.parts_in_space) / stagger.parts_in_space**0.5
        ) if exchange else None  # fmt: skip
        if shared or stagger.parts == 1:
            self.network = make(inputs)
            return
        networks = [make(inputs) for _ in range(stagger.parts)]
        parameters, buffers = stack_module_state(networks)
        self._names = list(parameters)
        convolutions = _weights_of_convolutions(networks[0]) if streams else set()
        self.stacked = torch.nn.ParameterList(
            _slices_channels_last(parameters[name]) if name in convolutions else parameters[name].detach()
            for name in self._names
        )
        self._buffer_names = list(buffers)
        for number, name in enumerate(self._buffer_names):
            self.register_buffer(f"buffer{number}", buffers[name])
        # In a list, so that the form without weights is not a submodule.
        self._form = [copy.deepcopy(networks[0]).to("meta")]

    def forward(self, window: torch.Tensor, conditions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next window, (batch, s_t, fields, *grid); conditions (batch, conditions)."""
        if self.reading == "offset":
            window = window[:, -1:].expand(-1, self.stagger.time, *window.shape[2:])
        parts = self.stagger.split(window)[:, :, 0]
        guessed = self._guessed(parts)
        changes = self._changes(self._seen(parts, guessed, conditions))
        return self.stagger.join(torch.add(guessed, changes, alpha=self._change)[:, :, None])

    def alone(self, index: int, frame: torch.Tensor, conditions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next frame of one part, (batch, fields, *coarse), from its frame: a solver of coarse resolution.

        In reading "phase" that frame is s_t steps later, in "offset" 1 + k.

        Raises
        ------
        ValueError : the networks exchange, so that none runs alone.
        """
        if self.mixing is not None:
            raise ValueError("The parts exchange values: none of them can run alone. Use exchange=0.")
        part = frame[None]
        guessed = self._guessed(part, index)
        seen = self._told(self._known(part, guessed), conditions, index)
        return torch.add(guessed[0], self._network(index)(seen[0]), alpha=self._change)

    def _guessed(self, parts: torch.Tensor, index: int | None = None) -> torch.Tensor:
        return parts if self.guess is None else self.guess(parts, index)

    def _known(self, parts: torch.Tensor, guessed: torch.Tensor) -> torch.Tensor:
        """Return what a part knows by itself: its state and the change of its classical step, where there is one."""
        if self.guess is None:
            return parts / self.scale
        return torch.cat((parts, guessed - parts), dim=2) / self.scale

    def _network(self, index: int) -> Callable[[torch.Tensor], torch.Tensor]:
        if not hasattr(self, "_form"):
            return self.network
        state = {name: p[index] for name, p in self._state().items()}
        return lambda x: functional_call(self._form[0], state, (x,))

    def _state(self) -> dict[str, torch.Tensor]:
        buffers = {name: getattr(self, f"buffer{n}") for n, name in enumerate(self._buffer_names)}
        return {**dict(zip(self._names, self.stacked, strict=True)), **buffers}

    def _told(self, parts: torch.Tensor, conditions: torch.Tensor | None, index: int | None = None) -> torch.Tensor:
        """Append what tells parts and places apart to (parts, batch, channels, *coarse)."""
        told, coarse = [parts], parts.shape[3:]
        if self.embedding is not None:
            e = self.embedding if index is None else self.embedding[index : index + 1]
            told.append(e.reshape(len(e), 1, -1, *(1,) * len(coarse)))
        if self.periodic is not None:
            fine = tuple(n * s for n, s in zip(coarse, self.stagger.space, strict=True))
            place = box_position(fine, self.periodic, parts)[:, None].expand(-1, self.stagger.time, -1, *fine)
            place = self.stagger.split(place)[:, :, 0]
            told.append(place if index is None else place[index : index + 1])
        if conditions is not None:
            told.append(conditions[(None, ..., *(None,) * len(coarse))])
        return torch.cat([x.expand(*parts.shape[:2], -1, *coarse) for x in told], dim=2)

    def _seen(self, parts: torch.Tensor, guessed: torch.Tensor, conditions: torch.Tensor | None) -> torch.Tensor:
        """Inputs of all networks, (parts, batch, inputs, *coarse)."""
        seen = self._known(parts, guessed)
        if self.mixing is not None:
            frames = (parts / self.scale).unflatten(0, (self.stagger.time, -1))
            mixed = torch.einsum("ep,kp...->ke...", self.mixing, frames)  # (s_t, exchange, batch, fields, *coarse)
            mixed = mixed.movedim(1, 2).flatten(2, 3).repeat_interleave(self.stagger.parts_in_space, dim=0)
            seen = torch.cat((seen, mixed), dim=2)
        return self._told(seen, conditions)

    def _changes(self, seen: torch.Tensor) -> torch.Tensor:
        """Changes of all parts in units of `scale` and `gain`, (parts, batch, fields, *coarse)."""
        if not hasattr(self, "_form"):
            return self.network(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        if isinstance(self._form[0], UNetwork) and fused_unet.usable(self._form[0], seen):
            return fused_unet.unets(self._form[0], self._state(), seen)
        if self.streams:
            return self._one_by_one(seen)
        return vmap(lambda state, x: functional_call(self._form[0], state, (x,)))(self._state(), seen)

    def _one_by_one(self, seen: torch.Tensor) -> torch.Tensor:
        beside, results = seen.is_cuda and self.streams > 1, []
        main = torch.cuda.current_stream() if beside else None
        streams = [torch.cuda.Stream() for _ in range(min(self.streams, len(seen)))] if beside else []
        for stream in streams:
            stream.wait_stream(main)
        # Taken apart at once: the gradient of one part at a time would be as large as all of them.
        apart = {name: values.unbind(0) for name, values in self._state().items()}
        for index, part in enumerate(seen):
            with torch.cuda.stream(streams[index % len(streams)] if streams else None):
                # The layout in which convolutions are fast on a GPU. On a CPU some have no gradient in it.
                last = seen.is_cuda and part.ndim == 4
                x = part.contiguous(memory_format=torch.channels_last) if last else part
                state = {name: values[index] if seen.is_cuda else values[index].contiguous()
                         for name, values in apart.items()}  # fmt: skip
                results.append(functional_call(self._form[0], state, (x,)))
        for stream in streams:
            main.wait_stream(stream)
        return torch.stack(results)


def _weights_of_convolutions(network: torch.nn.Module) -> set[str]:
    """Return the names of those of convolutions in a plane; spectral weights have as many axes, and another layout."""
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    return {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, kinds)}


def _slices_channels_last(stacked: torch.Tensor) -> torch.Tensor:
    """Return stacked weights of convolutions, (parts, out, in, *kernel), laid out as a GPU likes each of them."""
    flat = stacked.detach().flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return flat.unflatten(0, stacked.shape[:2])
