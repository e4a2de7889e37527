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

    def add(self, *members: Member) -> None:
        """Add members; those that are there already stay."""
        places, here = self._places, self._members
        for member in members:
            if member not in places:
                places[member] = len(here)
                here.append(member)

    def discard(self, *members: Member) -> None:
        """Remove members that are there, one after the other; each time the last one takes its place."""
        places, here = self._places, self._members
        for member in members:
            place = places.pop(member, None)
            if place is not None:
                last = here.pop()
                if place < len(here):
                    here[place] = last
                    places[last] = place

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
