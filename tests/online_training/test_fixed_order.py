"""A fixed order: draws depend on the plan alone, whatever arrives first, dies, or was cut and resumed."""

import random
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.online_training.buffer import StreamEnded
from headrace.online_training.fifo import FIFO, FIRO
from headrace.online_training.fixed_order import FixedOrder, spare_slots, steps_ahead
from headrace.online_training.reservoir import Reservoir

SIMULATIONS, BATCH = 7, 3


class Stream:
    """Jobs that run simulations in the order of the plan, and a trainer, all at the mercy of chance."""

    def __init__(self, kind, *, group, window, spare, views, lengths, num_steps, chance, resume=None) -> None:
        inner = kind(group * window + BATCH + spare, window, watermark=4, seed=11)
        plan = list(range(SIMULATIONS))
        self.buffer = FixedOrder(inner, plan, group=group, num_steps=num_steps, window=window, views=views)
        self.buffer.on_step = lambda slot: self.order.append(self.memory[slot])
        self.group, self.window, self.lengths, self.chance = group, window, lengths, chance
        self.num_steps = num_steps
        self.memory: dict[int, tuple[int, int]] = {}
        self.order: list[tuple[int, int]] = []
        self.draws: list[list[tuple[int, int]]] = []
        self.held: deque = deque()
        self.accepted: Counter = Counter()
        self.ended: dict[int, int] = {}
        self.running: dict[int, list] = {}  # simulation: [next step to store, {step: slot}]
        self.dead = dict.fromkeys(plan, frozenset())
        if resume is not None:
            batches, accepted, ended = resume
            self.dead = self.buffer.repeat(batches, BATCH, accepted, ended)
        self.waiting = deque(simulation for simulation in plan if simulation in self.dead)
        self.kept: Counter = Counter()

    def stores(self, simulation: int, step: int) -> bool:
        starts = range(max(0, step - self.window + 1), min(step, self.num_steps - self.window) + 1)
        return step >= self.kept[simulation] and any(start not in self.dead[simulation] for start in starts)

    def start(self) -> bool:
        if not self.waiting or len(self.running) == self.group:
            return False
        self.running[self.waiting.popleft()] = [0, {}]
        return True

    def send(self) -> bool:
        for simulation, (step, slots) in self.chance.sample(sorted(self.running.items()), len(self.running)):
            ready = [s for s in range(step, step + steps_ahead(self.window)) if s < self.num_steps]
            for one in ready:
                if self.stores(simulation, one) and one not in slots:
                    slot = self.buffer.reserve(simulation)
                    if slot is None:
                        break
                    slots[one] = slot
            if step == self.lengths[simulation]:
                for slot in slots.values():
                    self.buffer.cancel(slot)
                del self.running[simulation]
                self.ended[simulation] = step
                self.buffer.end(simulation)
                return True
            if self.stores(simulation, step):
                if step not in slots:
                    continue
                slot = slots.pop(step)
                self.memory[slot] = (simulation, step)
                self.accepted[simulation] = max(self.accepted[simulation], step + 1)
                self.buffer.put(simulation, 1, step, slot)
            self.running[simulation][0] = step + 1
            self.kept[simulation] = max(self.kept[simulation], step + 1)
            return True
        return False

    def die(self) -> bool:
        if not self.running or self.chance.random() > 0.02:
            return False
        simulation = self.chance.choice(sorted(self.running))
        for slot in self.running.pop(simulation)[1].values():
            self.buffer.cancel(slot)
        self.waiting.appendleft(simulation)
        return True

    def draw(self) -> bool:
        if len(self.held) > 2 or not (windows := self.buffer.sample(BATCH)):
            return False
        for one in windows:
            assert [self.memory[slot] for slot in one.slots] == [
                (one.simulation, one.start + k) for k in range(self.window)
            ]
        self.held.append(windows)
        self.draws.append([(one.simulation, one.start) for one in windows])
        return True

    def train(self) -> bool:
        if not self.held:
            return False
        windows = self.held.popleft()
        for one in windows:  # nobody has written into the slots meanwhile
            assert [self.memory[slot] for slot in one.slots] == [
                (one.simulation, one.start + k) for k in range(self.window)
            ]
        self.buffer.release([one.ticket for one in windows])
        return True

    def run(self, until: int | None = None) -> "Stream":
        actors, idle = [self.start, self.send, self.die, self.draw, self.train], 0
        while until is None or len(self.draws) < until:
            try:
                moved = any([actor() for actor in self.chance.sample(actors, len(actors))])
            except StreamEnded:
                break
            idle = 0 if moved else idle + 1
            assert idle < 3, "solvers and trainer wait for each other"
        return self


@given(
    kind=st.sampled_from([FIFO, FIRO, Reservoir]), group=st.integers(1, 3), window=st.integers(1, 3),
    spare=st.integers(0, 25), seed=st.integers(0, 10**6), short=st.integers(0, 3), data=st.data(),
)  # fmt: skip
@settings(max_examples=60)
def test_draws_repeat_whatever_arrives_first_and_wherever_a_run_is_cut(
    kind, group, window, spare, seed, short, data
) -> None:
    num_steps, chance = window + 5, random.Random(seed)
    lengths = dict.fromkeys(range(SIMULATIONS), num_steps)
    lengths |= {s: chance.randrange(num_steps) for s in chance.sample(range(SIMULATIONS), short)}
    what = {
        "kind": kind, "group": group, "window": window, "spare": spare, "lengths": lengths, "num_steps": num_steps,
        "views": 3.0 if kind is Reservoir else 1.0,
    }  # fmt: skip
    whole = Stream(**what, chance=random.Random(seed + 1)).run()
    other = Stream(**what, chance=random.Random(seed + 2)).run()
    assert other.draws == whole.draws and other.order == whole.order
    starts = {(s, k) for s, n in lengths.items() for k in range(n - window + 1)}
    assert {window for batch in whole.draws for window in batch} == starts, "every window was used, and no other"

    # The trainer had a checkpoint of some batches when everything was killed some draws later; and once more.
    drawn = data.draw(st.integers(0, len(whole.draws)))
    trained = data.draw(st.integers(max(0, drawn - 5), drawn))
    first = Stream(**what, chance=random.Random(seed + 3)).run(until=drawn)
    resume = trained, dict(first.accepted), dict(first.ended)
    again = data.draw(st.integers(trained, len(whole.draws)))
    second = Stream(**what, chance=random.Random(seed + 4), resume=resume).run(until=again - trained)
    assert second.draws == whole.draws[trained:again]
    accepted, ended = first.accepted | second.accepted, first.ended | second.ended
    third = Stream(**what, chance=random.Random(seed + 5), resume=(again, dict(accepted), dict(ended))).run()
    assert third.draws == whole.draws[again:]


def test_only_what_is_needed_is_run_again() -> None:
    what = {
        "kind": Reservoir, "group": 1, "window": 1, "spare": 6, "lengths": dict.fromkeys(range(SIMULATIONS), 6),
        "num_steps": 6, "views": 2.0,
    }  # fmt: skip
    whole = Stream(**what, chance=random.Random(1)).run()
    trained = len(whole.draws) - 2
    last = Stream(**what, chance=random.Random(2), resume=(trained, dict(whole.accepted), dict(whole.ended)))
    assert 0 < len(last.waiting) < SIMULATIONS
    assert last.run().draws == whole.draws[trained:]


def test_a_ledger_that_lacks_what_was_trained_on_is_refused() -> None:
    what = {
        "kind": FIFO, "group": 1, "window": 1, "spare": 6, "lengths": dict.fromkeys(range(SIMULATIONS), 6),
        "num_steps": 6, "views": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="has 4 batches, but the ledger holds steps for 1 of them only"):
        Stream(**what, chance=random.Random(1), resume=(4, {0: 5}, {}))


def test_the_memory_is_what_was_promised() -> None:
    buffer = FixedOrder(Reservoir(8, 2), range(9), group=3, num_steps=6, window=2, views=2.0)
    slots = [buffer.reserve(simulation) for simulation in range(6) for _ in range(steps_ahead(2))]
    assert len(set(slots)) == len(slots) and max(slots) < 8 + spare_slots(3, 2)
    assert buffer.reserve(0) is None, "no simulation may run further ahead"
    assert buffer.reserve(6) is None, "and none of the group after the next"
