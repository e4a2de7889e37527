"""The buffers: every window is used, only seen ones are evicted, nothing deadlocks, draws are uniform."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scipy.stats import chi2

from headrace.online_training.buffer import StreamEnded
from headrace.online_training.fifo import FIFO, FIRO
from headrace.online_training.reservoir import Reservoir, check_capacity

ALL_BUFFERS = (FIFO, FIRO, Reservoir)


def put_steps(buffer, simulation: int, steps, attempt: int = 1) -> list[int]:
    """Store steps and return their slots."""
    slots = []
    for step in steps:
        slots.append(buffer.reserve(simulation))
        assert slots[-1] is not None, f"step {step} of simulation {simulation} had to wait"
        buffer.put(simulation, attempt, step, slots[-1])
    return slots


def use(buffer, count: int) -> list[tuple[int, int]] | None:
    """Draw, release, and return which windows these were."""
    windows = buffer.sample(count)
    if windows is None:
        return None
    buffer.release([w.ticket for w in windows])
    return [(w.simulation, w.start) for w in windows]


def drain(buffer, count: int = 3) -> list[tuple[int, int]]:
    used = []
    while True:
        try:
            used += use(buffer, count)
        except StreamEnded:
            return used


def require_consistent(buffer) -> None:
    """Recount from the trajectories everything that the buffer keeps up to date step by step."""
    tickets = buffer._starts.tickets
    window, pins = buffer._window, Counter((tickets.look(tickets.out()) // 4).tolist())
    needed, held, population, unseen = Counter(), Counter(), 0, 0
    for trajectory in buffer._trajectories.values():
        assert not set(trajectory.starts) & trajectory.dead
        assert not set(trajectory.pending) & (trajectory.dead | set(trajectory.starts))
        for index, start in trajectory.starts.items():
            population += 1
            unseen += not buffer._starts.seen[start]
            assert start == trajectory.slots[index] and buffer._starts.pins[start] == pins[start]
            for step in range(index, index + window):
                slot = trajectory.slots[step]
                needed[slot] += 1
                held[slot] += pins[start] + (not buffer._starts.seen[start])
        if trajectory.simulation not in buffer._ended:
            for step, slot in trajectory.slots.items():
                waiting = [s for s in range(max(0, step - window + 1), step + 1)
                           if s not in trajectory.starts and s not in trajectory.dead]  # fmt: skip
                needed[slot] += len(waiting)
                held[slot] += len(waiting)
    owned = {slot: key for slot, key in enumerate(buffer._owner) if key is not None}
    assert set(needed) == set(owned)
    assert all(needed[slot] == buffer._needed[slot] and held[slot] == buffer._holds.count(slot) for slot in owned)
    reclaimable = buffer._holds.reclaimable()
    assert all((held[slot] == 0) == (slot in reclaimable[buffer.shard_of(slot)]) for slot in owned)
    assert sum(map(len, reclaimable)) == sum(held[slot] == 0 for slot in owned)
    # Free, reserved and needed slots are all slots, each in one of these states only, and in its own shard.
    free = [slot for shard in buffer._free for slot in shard]
    assert sorted([*free, *buffer._reserved, *owned]) == list(range(buffer.capacity))
    assert all(buffer.shard_of(slot) == shard for shard, free in enumerate(buffer._free) for slot in free)
    assert (population, unseen) == (buffer.population, buffer.unseen)
    assert population <= buffer.capacity


class Story(RuleBasedStateMachine):
    """Any sequence of steps, deaths of jobs, ends, draws, releases and draws given back."""

    @initialize(
        kind=st.sampled_from(ALL_BUFFERS), window=st.integers(1, 4), spare=st.integers(0, 12),
        watermark=st.integers(1, 12), seed=st.integers(0, 3), shards=st.integers(1, 3),
    )  # fmt: skip
    def begin(self, kind, window, spare, watermark, seed, shards) -> None:
        self.window, self.length = window, window + 4
        self.buffer = kind(3 * window + spare, window, watermark, seed, shards)
        self.content: dict[int, tuple[int, int]] = {}
        self.reserved: dict[int, list[int]] = {s: [] for s in range(3)}  # running simulation: its reserved slots
        self.next_step = dict.fromkeys(range(3), 0)
        self.kept = dict.fromkeys(range(3), 0)
        self.attempt = dict.fromkeys(range(3), 1)
        self.next_simulation = 3
        self.out: dict[int, object] = {}
        self.accepted: set[tuple[int, int]] = set()
        self.uses: Counter = Counter()
        self.first_uses: Counter = Counter()

    @rule(data=st.data())
    @precondition(lambda self: self.reserved)
    def reserve(self, data) -> None:
        simulation = data.draw(st.sampled_from(sorted(self.reserved)))
        if max(self.next_step[simulation], self.kept[simulation]) + len(self.reserved[simulation]) >= self.length:
            return
        slot = self.buffer.reserve(simulation)
        if slot is None:
            # Only where evicting all seen starts would free nothing.
            assert not any(self.buffer._free) and all(
                self.buffer._holds.count(slot) for slot, key in enumerate(self.buffer._owner) if key is not None
            )
            return
        assert all(slot not in window.slots for window in self.out.values()), "a slot in use was given away"
        self.content.pop(slot, None)
        self.reserved[simulation].append(slot)

    @rule(data=st.data())
    @precondition(lambda self: self.reserved)
    def put(self, data) -> None:
        simulation = data.draw(st.sampled_from(sorted(self.reserved)))
        if not self.reserved[simulation]:
            return
        step = max(self.next_step[simulation], self.kept[simulation])
        slot = self.reserved[simulation].pop(0)
        self.content[slot] = (simulation, step)
        self.buffer.put(simulation, self.attempt[simulation], step, slot)
        self.next_step[simulation] = self.kept[simulation] = step + 1
        if step + 1 >= self.window:
            self.accepted.add((simulation, step + 1 - self.window))
        if step + 1 == self.length:
            self._end(simulation)

    @rule(data=st.data())
    @precondition(lambda self: self.reserved)
    def end_early(self, data) -> None:
        self._end(data.draw(st.sampled_from(sorted(self.reserved))))

    def _end(self, simulation: int) -> None:
        for slot in self.reserved.pop(simulation):
            self.buffer.cancel(slot)
        self.buffer.end(simulation)
        new = self.next_simulation
        self.next_simulation += 1
        self.reserved[new], self.next_step[new], self.kept[new], self.attempt[new] = [], 0, 0, 1

    @rule(data=st.data())
    @precondition(lambda self: self.reserved)
    def job_dies(self, data) -> None:
        simulation = data.draw(st.sampled_from(sorted(self.reserved)))
        for slot in self.reserved[simulation]:
            self.buffer.cancel(slot)
        self.reserved[simulation] = []
        self.next_step[simulation] = 0
        self.attempt[simulation] += 1

    @rule(count=st.integers(1, 6))
    def sample(self, count) -> None:
        windows = self.buffer.sample(count)
        if windows is None:
            return
        assert 0 < len(windows) <= count
        for window in windows:
            assert window.ticket not in self.out
            assert [self.content[slot] for slot in window.slots] == [
                (window.simulation, window.start + k) for k in range(self.window)
            ]
            self.out[window.ticket] = window

    @rule(data=st.data(), used=st.booleans())
    @precondition(lambda self: self.out)
    def release(self, data, used) -> None:
        tickets = data.draw(st.lists(st.sampled_from(sorted(self.out)), unique=True, min_size=1))
        self._release(tickets, used)

    def _release(self, tickets, used) -> None:
        for ticket in tickets:
            window = self.out.pop(ticket)
            key = (window.simulation, window.start)
            # Nobody has written into the slots of a drawn window.
            assert [self.content[slot] for slot in window.slots] == [(key[0], key[1] + k) for k in range(self.window)]
            self.uses[key] += used
            self.first_uses[key] += used and window.first
        self.buffer.release(tickets, used=used)

    @invariant()
    def counts_are_right(self) -> None:
        if hasattr(self, "buffer"):
            require_consistent(self.buffer)

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        for simulation in list(self.reserved):
            for slot in self.reserved[simulation]:
                self.buffer.cancel(slot)
            self.buffer.end(simulation)
        self.buffer.close()
        self._release(list(self.out)[::2], False)
        while True:
            try:
                windows = self.buffer.sample(4)
            except StreamEnded:
                break
            assert windows or self.out, "a closed buffer waits for nothing"
            self.out.update({w.ticket: w for w in windows or ()})
            self._release(list(self.out), True)
            require_consistent(self.buffer)
        assert set(+self.uses) == self.accepted, "a window was lost, or one was made up"
        assert all(self.first_uses[key] == 1 for key in self.accepted), "a first use was not counted once"
        if not isinstance(self.buffer, Reservoir):
            assert all(self.uses[key] == 1 for key in self.accepted)
        assert self.buffer.population == 0 and sum(map(len, self.buffer._free)) == self.buffer.capacity


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=70, stateful_step_count=50)


@given(
    kind=st.sampled_from(ALL_BUFFERS), window=st.integers(1, 5), max_running=st.integers(1, 4), ahead=st.integers(1, 4),
    watermark=st.integers(1, 40), batch=st.integers(1, 9), prefetch=st.integers(0, 2), seed=st.integers(0, 10**6),
    shards=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=100)
def test_producers_and_a_trainer_never_wait_for_each_other(
    kind, window, max_running, ahead, watermark, batch, prefetch, seed, shards
) -> None:
    """The smallest buffer that must do, in any order of events, with a watermark that may never be reached."""
    chance = random.Random(seed)
    buffer = kind(max_running * window, window, watermark, seed, min(shards, max_running * window))
    length, planned = window + chance.randrange(6), list(range(6))
    running: dict[int, list] = {}  # simulation: [next step, reserved slots]
    held, used, ended, idle = [], Counter(), False, 0

    def admit() -> bool:
        if not planned or len(running) == max_running:
            return False
        slots = []
        while len(slots) < window:
            slots.append(buffer.reserve(planned[0]))
            if slots[-1] is None:
                for slot in slots[:-1]:
                    buffer.cancel(slot)
                return False
        running[planned.pop(0)] = [0, slots]
        return True

    def extend() -> bool:
        for simulation, (step, slots) in chance.sample(sorted(running.items()), len(running)):
            if len(slots) < ahead and step + len(slots) < length and (slot := buffer.reserve(simulation)) is not None:
                slots.append(slot)
                return True
        return False

    def send() -> bool:
        ready = [simulation for simulation, (_, slots) in running.items() if slots]
        if not ready:
            return False
        simulation = chance.choice(ready)
        step, slots = running[simulation]
        buffer.put(simulation, 1, step, slots.pop(0))
        running[simulation][0] += 1
        if step + 1 == length:
            del running[simulation]
            buffer.end(simulation)
        return True

    def draw() -> bool:
        if len(held) > prefetch or not buffer.ready or not (windows := buffer.sample(batch)):
            return False
        held.append(windows)
        return True

    def train() -> bool:
        if not held:
            return False
        windows = held.pop(0)
        buffer.release([w.ticket for w in windows])
        used.update((w.simulation, w.start) for w in windows)
        return True

    actors = [admit, extend, send, draw, train]
    while not ended:
        if not planned and not running:
            buffer.close()
        try:
            moved = any([actor() for actor in chance.sample(actors, len(actors))])
        except StreamEnded:
            ended = not held
            while train():
                pass
            continue
        # That a producer is refused lets the trainer draw the next time.
        idle = 0 if moved else idle + 1
        assert idle < 2, "producers and trainer wait for each other"
        assert sum(used.values()) < 10**5, "the producers never get on"
    assert set(used) == {(s, k) for s in range(6) for k in range(length - window + 1)}


def test_a_simulation_stays_in_the_shard_that_had_most_room() -> None:
    buffer = Reservoir(40, 2, shards=4)
    homes = [{buffer.shard_of(slot) for slot in put_steps(buffer, simulation, range(5))} for simulation in range(8)]
    assert all(len(home) == 1 for home in homes)
    assert Counter(home.pop() for home in homes) == dict.fromkeys(range(4), 2), "and all shards fill alike"


def test_a_full_shard_borrows_before_anything_is_evicted() -> None:
    buffer = Reservoir(8, 1, shards=2)
    slots = put_steps(buffer, 0, range(6))
    assert Counter(map(buffer.shard_of, slots)) == {0: 4, 1: 2}
    assert buffer.population == 6


@pytest.mark.parametrize(("kind", "shards"), [(FIRO, 1), (Reservoir, 1), (Reservoir, 4)])
def test_draws_are_uniform(kind, shards) -> None:
    """Also over the shards: a simulation that stays in one of them is drawn no more often for it."""
    population, counts = 60, Counter()
    for trial in range(400 if kind is FIRO else 1):
        buffer = kind(population, 1, watermark=10, seed=trial, shards=shards)
        for simulation in range(population):
            put_steps(buffer, simulation, [0])
        for _ in range(1 if kind is FIRO else 400):
            windows = buffer.sample(12)
            assert len({w.simulation for w in windows}) == 12  # without repetition inside a batch
            counts.update(w.simulation for w in windows)
            buffer.release([w.ticket for w in windows])
    expected = 400 * 12 / population
    statistic = sum((counts[s] - expected) ** 2 / expected for s in range(population))
    # Fixed seeds: no chance is involved any more. Draws without repetition vary less, by 1 - 12/60.
    assert chi2.ppf(0.001, population - 1) < statistic / (1 - 12 / population) < chi2.ppf(0.999, population - 1)


def test_eviction_is_uniform_among_seen_windows() -> None:
    survivors, size = Counter(), 40
    for seed in range(500):
        buffer = Reservoir(size, 1, seed=seed)
        for simulation in range(size):
            put_steps(buffer, simulation, [0])
            buffer.end(simulation)
        windows = buffer.sample(size)
        buffer.release([w.ticket for w in windows if w.simulation >= 10])
        buffer.release([w.ticket for w in windows if w.simulation < 10], used=False)
        put_steps(buffer, 1000, range(15))
        survivors.update(s for s in range(size) if s in buffer._trajectories)
    assert all(survivors[s] == 500 for s in range(10)), "an unseen window was evicted"
    expected = 500 * 15 / 30
    statistic = sum((survivors[s] - expected) ** 2 / expected for s in range(10, size)) / (1 - 15 / 30)
    assert chi2.ppf(0.001, 29) < statistic < chi2.ppf(0.999, 29)


def test_a_long_stream_leaves_all_times_in_the_reservoir_and_few_gaps() -> None:
    """Windows of 8 of trajectories of 50 steps: memory is spent on windows, and early, middle and late ones alike."""
    window, length, capacity = 8, 50, 500
    buffer, times, populations = Reservoir(capacity, window, seed=1), Counter(), []
    for simulation in range(130):
        for step in range(length):
            put_steps(buffer, simulation, [step])
            use(buffer, 5)
        buffer.end(simulation)
        if simulation >= 30:
            populations.append(buffer.population)
            times.update(start for t in buffer._trajectories.values() for start in t.starts)
    # A full trajectory of 50 slots has 43 starts.
    assert min(populations) > 0.8 * capacity * (length - window + 1) / length
    mean = sum(times.values()) / (length - window + 1)
    assert all(abs(times[start] / mean - 1) < 0.2 for start in range(length - window + 1)), times


@pytest.mark.parametrize("kind", ALL_BUFFERS)
def test_the_same_calls_with_the_same_seed_draw_the_same_windows(kind) -> None:
    def story(seed: int) -> list:
        buffer, drawn = kind(30, 2, watermark=8, seed=seed), []
        for simulation in range(20):
            for step in range(10):
                if (slot := buffer.reserve(simulation)) is not None:
                    buffer.put(simulation, 1, step, slot)
                else:
                    break
                drawn.append(use(buffer, 3))
            buffer.end(simulation)
        buffer.close()
        return drawn + drain(buffer)

    assert story(4) == story(4)
    assert (story(4) == story(5)) == (kind is FIFO)


@pytest.mark.parametrize("kind", ALL_BUFFERS)
def test_short_trajectories_give_fewer_windows_or_none(kind) -> None:
    buffer = kind(40, 4)
    for simulation, length in enumerate((3, 4, 7)):
        put_steps(buffer, simulation, range(length))
        buffer.end(simulation)
    assert buffer.population == 0 + 1 + 4
    assert sum(map(len, buffer._free)) == 40 - 4 - 7  # the steps that no window needs are gone at once
    buffer.close()
    assert sorted(drain(buffer)) == [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_fifo_keeps_the_order_of_arrival_also_of_what_is_given_back() -> None:
    buffer = FIFO(20, 2)
    put_steps(buffer, 0, range(4))
    put_steps(buffer, 1, range(3))
    first, second = buffer.sample(2), buffer.sample(1)
    buffer.release([w.ticket for w in second], used=False)
    assert use(buffer, 3) == [(0, 2), (1, 0), (1, 1)]
    assert [(w.simulation, w.start) for w in first] == [(0, 0), (0, 1)]


def test_firo_waits_below_its_watermark_until_it_is_closed() -> None:
    buffer = FIRO(20, 1, watermark=5)
    put_steps(buffer, 0, range(4))
    assert not buffer.ready and buffer.sample(1) is None
    put_steps(buffer, 0, range(4, 7))
    assert buffer.ready and len(use(buffer, 2)) == 2 and len(use(buffer, 1)) == 1
    assert buffer.population == 4 and buffer.sample(1) is None
    buffer.close()
    assert len(drain(buffer)) == 4


def test_a_reservoir_reads_again_before_and_once_after_it_is_closed() -> None:
    buffer = Reservoir(10, 1, watermark=3)
    put_steps(buffer, 0, range(2))
    assert buffer.sample(1) is None and not buffer.ready
    put_steps(buffer, 0, range(2, 4))
    uses = Counter(window for _ in range(50) for window in use(buffer, 3))
    assert len(uses) == 4 and buffer.population == 4 and buffer.unseen == 0
    assert len(use(buffer, 9)) == 9  # a batch larger than the population repeats windows
    buffer.close()
    assert sorted(drain(buffer)) == [(0, k) for k in range(4)]
    assert buffer.population == 0


def test_an_end_waits_for_what_could_come_back() -> None:
    buffer = Reservoir(4, 1)
    put_steps(buffer, 0, [0])
    buffer.end(0)
    buffer.close()
    (window,) = buffer.sample(3)
    assert buffer.sample(3) is None
    buffer.release([window.ticket], used=False)
    (again,) = buffer.sample(3)
    assert (again.first, again.ticket != window.ticket) == (True, True)
    buffer.release([again.ticket])
    with pytest.raises(StreamEnded):
        buffer.sample(3)


def test_one_draw_at_a_time_is_the_first() -> None:
    buffer = Reservoir(4, 1)
    put_steps(buffer, 0, [0])
    one, two = buffer.sample(2)
    assert (one.first, two.first) == (True, False)
    buffer.release([two.ticket])
    assert buffer.unseen == 1  # the use that goes on record is still out
    buffer.release([one.ticket], used=False)
    (three,) = buffer.sample(1)
    buffer.release([three.ticket])
    (four,) = buffer.sample(1)
    assert (three.first, four.first, buffer.unseen) == (True, False, 0)


@pytest.mark.parametrize("kind", ALL_BUFFERS)
def test_windows_used_before_a_resume_are_not_offered_and_need_no_slots(kind) -> None:
    buffer = kind(20, 3)
    buffer.mark_used(7, range(4))
    put_steps(buffer, 7, range(8), attempt=2)
    assert buffer.population == 2 and sum(map(len, buffer._free)) == 20 - 4  # steps 4..7 serve starts 4 and 5
    buffer.end(7)
    buffer.close()
    assert sorted(drain(buffer)) == [(7, 4), (7, 5)]


@pytest.mark.parametrize("kind", ALL_BUFFERS)
@given(gaps=st.sets(st.integers(0, 19)), window=st.integers(1, 4))
@settings(max_examples=40)
def test_steps_that_are_left_out_cost_their_windows_only(kind, gaps: set[int], window: int) -> None:
    buffer = kind(24, window)
    for step in range(20):
        if step in gaps:
            buffer.skip(7, step)
        else:
            put_steps(buffer, 7, [step])
        require_consistent(buffer)
    buffer.end(7)
    require_consistent(buffer)
    buffer.close()
    whole = {(7, s) for s in range(21 - window) if gaps.isdisjoint(range(s, s + window))}
    assert buffer.population == len(whole)
    if whole:
        assert set(drain(buffer)) == whole
    assert all(buffer.reserve(8) is not None for _ in range(24)), "nothing is kept for windows that cannot be"


def test_a_second_attempt_continues_where_the_first_one_died() -> None:
    buffer = Reservoir(20, 3)
    put_steps(buffer, 0, range(4), attempt=1)
    put_steps(buffer, 0, range(4, 6), attempt=2)
    windows = {w.start: w for w in buffer.sample(4)}
    assert {start: w.attempt for start, w in windows.items()} == {0: 1, 1: 1, 2: 2, 3: 2}


def test_a_full_buffer_of_unseen_windows_makes_the_solver_wait() -> None:
    buffer = Reservoir(5, 1)
    slots = put_steps(buffer, 0, range(5))
    assert buffer.reserve(0) is None
    (window,) = buffer.sample(1)
    assert buffer.reserve(0) is None  # it is drawn
    buffer.release([window.ticket])
    assert buffer.reserve(0) == window.slots[0] == slots[window.start]


@pytest.mark.parametrize("kind", ALL_BUFFERS)
def test_wrong_calls_are_named(kind) -> None:
    buffer = kind(4, 2)
    (slot, _) = put_steps(buffer, 0, range(2))
    with pytest.raises(ValueError, match=f"Slot {slot} is not reserved"):
        buffer.cancel(slot)
    with pytest.raises(ValueError, match=f"Slot {slot} is not reserved"):
        buffer.put(0, 1, 2, slot)
    free = buffer.reserve(0)
    with pytest.raises(ValueError, match="Step 1 of simulation 0 cannot be put: it is here already"):
        buffer.put(0, 1, 1, free)
    buffer.end(0)
    with pytest.raises(ValueError, match="the simulation has ended"):
        buffer.put(0, 1, 2, free)
    with pytest.raises(KeyError):
        buffer.release([99])
    with pytest.raises(ValueError, match="4 slots cannot hold a window of 5 steps"):
        kind(4, 5)
    with pytest.raises(ValueError, match="watermark"):
        kind(4, 2, watermark=0)


def test_a_buffer_that_is_too_small_is_refused_with_what_it_lacks() -> None:
    check_capacity(3 * 4 + 8, 3, 4, 8)
    with pytest.raises(ValueError, match=r"holds 17 steps.* need 20: 3 too few"):
        check_capacity(17, 3, 4, 8)


def test_a_large_reservoir_is_as_quick_as_a_small_one() -> None:
    seconds = []
    for size in (500, 50_000):
        buffer = Reservoir(size, 1, watermark=100)
        put_steps(buffer, 0, range(size))
        while buffer.unseen > size // 2:
            use(buffer, 100)
        began = time.process_time()
        for start in range(size, size + 5000, 50):
            put_steps(buffer, 0, range(start, start + 50))
            use(buffer, 100)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 30 * seconds[0]  # of this process; a scan of the slots in each operation would make it 100
