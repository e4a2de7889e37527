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
        members, chosen = self._members, []
        if len(members) > 21 + 12 * count:
            return [members[place] for place in self._places_among_many(count)]
        while len(chosen) < count and members:
            part = min(count - len(chosen), len(members))
            chosen += self._generator.sample(members, part)
        return chosen

    def _places_among_many(self, count: int) -> dict[int, None]:
        """Return what `random.Random.sample` would choose where members are many, in a third of its time."""
        size, chosen = len(self._members), {}
        bits, draw = size.bit_length(), self._generator.getrandbits
        while len(chosen) < count:
            place = draw(bits)
            if place < size:
                chosen[place] = None
        return chosen
