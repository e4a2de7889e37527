"""A set from which a seeded generator draws members at random, each operation in constant time."""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class RandomSet(Generic[Member]):
    """Members in an arbitrary but reproducible order: the same calls with the same seed give the same draws."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._members: list[Member] = []
        self._places: dict[Member, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: Member) -> bool:
        return member in self._places

    def add(self, member: Member) -> None:
        """Add a member; one that is there already stays."""
        if member not in self._places:
            self._places[member] = len(self._members)
            self._members.append(member)

    def discard(self, member: Member) -> None:
        """Remove a member if it is there; the last one takes its place."""
        place = self._places.pop(member, None)
        if place is None:
            return
        last = self._members.pop()
        if place < len(self._members):
            self._members[place] = last
            self._places[last] = place

    def choose(self) -> Member:
        """Return one member, uniformly."""
        return self._members[self._generator.randrange(len(self._members))]

    def sample(self, count: int) -> list[Member]:
        """Return members uniformly, without repetition where there are enough, else with as little as possible."""
        chosen: list[Member] = []
        while len(chosen) < count and self._members:
            part = min(count - len(chosen), len(self._members))
            chosen += self._generator.sample(self._members, part)
        return chosen
