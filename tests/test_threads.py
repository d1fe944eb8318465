"""The control of the threads, on simulated machines: what it decides, what its trials cost."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest

from slm_local.backends.llamacpp.threads import DECODE_ROWS, ThreadControl, average

ONE_THREAD = {"135M": 1.08, "1.5B": 1.7}
"""What a step takes with one thread, of what it takes with two, as measured for real models on two cores."""

CROWDED_STEPS = (1.5, 2.0, 3.0, 6.0)
"""What steps take beside a program on one of their cores, of what they take alone."""


@dataclass(slots=True)
class Machine:
    """Two cores and a model; `t(threads, free cores)` with noise. Its clock is that of the steps alone."""

    size: str = "135M"
    calm_s: float = 0.006
    cores: int = 2
    noise: float = 0.03
    tells_free_cores: bool = True
    growth: float = 0.0
    """How much longer each step takes than the one before."""
    hogs: int = 0
    now_s: float = 0.0
    cells: int = 100
    made: int = 0
    notes: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """Threads of each step."""
    draw: random.Random = field(default_factory=lambda: random.Random(7))
    control: ThreadControl = field(default_factory=lambda: ThreadControl(2))

    def step_s(self, threads: int, rows: int) -> float:
        seconds = self.calm_s * math.sqrt(rows) * (1 + self.growth) ** self.made * (1 + self.draw.gauss(0, self.noise))
        seconds *= ONE_THREAD[self.size] if threads == 1 else 2 / threads
        return seconds * (self.draw.choice(CROWDED_STEPS) if threads > self.cores - self.hogs else 1.0)

    def free_cores(self, threads: int) -> float | None:
        """Return what the system would tell: a program that shares its core gets two thirds of it."""
        shares = max(0, threads + self.hogs - self.cores)
        return self.cores - self.hogs + shares / 3 if self.tells_free_cores else None

    def run(self, steps: int, *, rows: int = 1, hiccup_s: float = 0.0) -> float:
        """Decode; return steps a second."""
        began_s = self.now_s
        for _ in range(steps):
            threads = self.control.threads_for(rows)
            self.record(threads, self.step_s(threads, rows) + hiccup_s, rows)
        return steps / (self.now_s - began_s)

    def record(self, threads: int, seconds: float, rows: int = 1) -> None:
        self.now_s += seconds
        self.made += 1
        self.cells += rows
        self.counts.append(threads)
        free = self.free_cores(threads)
        note = self.control.record(rows=rows, cells=self.cells, seconds=seconds, now_s=self.now_s, free_cores=free)
        if note:
            self.notes.append(note)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("noise", [0.02, 0.15])
def test_a_calm_machine_is_never_tried_with_fewer(tells: bool, noise: float) -> None:
    machine = Machine(noise=noise, tells_free_cores=tells)
    machine.run(5000)
    assert set(machine.counts) == {2}
    assert machine.notes == []


@pytest.mark.parametrize("size", ["135M", "1.5B"])
def test_a_program_that_takes_a_core_costs_a_thread_within_a_second_of_steps(size: str) -> None:
    machine = Machine(size=size)
    machine.run(200)
    machine.hogs = 1
    machine.run(60)
    assert machine.notes == ["another program takes a core: 1 thread in place of 2"]
    quiet = 1 / (machine.calm_s * ONE_THREAD[size])
    assert machine.run(2000) >= 0.95 * quiet


@pytest.mark.parametrize("tells", [True, False])
def test_steps_that_hang_are_answered_before_many_of_them_have(tells: bool) -> None:
    machine = Machine(tells_free_cores=tells)
    machine.run(100)
    machine.hogs, begun = 1, len(machine.counts)
    for factor in (2.0, 40.0, 3.0, 90.0, 60.0, 20.0):
        if machine.control.threads_for(1) == 1:
            break
        machine.record(2, factor * machine.calm_s)
    assert machine.counts[begun:] == [2] * (2 if tells else 3)
    machine.run(10)
    assert machine.control.threads_for(1) == 1
    assert len(machine.notes) == 1


def test_two_hiccups_in_a_row_cost_a_trial_at_most() -> None:
    machine = Machine()
    machine.run(100)
    for _ in range(2):
        machine.record(2, 50 * machine.calm_s)
    machine.run(30)
    assert machine.control.threads_for(1) == 2
    assert not machine.notes


def test_steps_alone_show_it_where_the_system_does_not_tell() -> None:
    machine = Machine(tells_free_cores=False)
    machine.run(200)
    machine.hogs = 1
    machine.run(200)
    assert machine.notes == ["steps became slow and uneven, and fewer threads are faster: 1 thread in place of 2"]


@pytest.mark.parametrize("tells", [True, False])
def test_a_core_that_was_taken_from_the_beginning_is_noticed(tells: bool) -> None:
    machine = Machine(hogs=1, tells_free_cores=tells)
    machine.run(200)
    assert len(machine.notes) == 1
    assert machine.control.threads_for(1) == 1


@pytest.mark.parametrize(("tells", "within_s"), [(True, 0.1), (False, 70.0)])
def test_the_thread_comes_back_once_the_core_is_free(tells: bool, within_s: float) -> None:
    machine = Machine(tells_free_cores=tells)
    machine.run(100)
    machine.hogs = 1
    machine.run(3000)
    machine.hogs = 0
    until_s = machine.now_s + within_s
    while machine.now_s < until_s:
        machine.run(1)
    assert machine.notes[-1] == "the core is free again: 2 threads"
    assert len(machine.notes) == 2
    machine.run(2000)
    assert len(machine.notes) == 2


@pytest.mark.parametrize("tells", [True, False])
def test_trying_more_threads_on_a_machine_that_stays_busy_costs_little(tells: bool) -> None:
    machine = Machine(size="1.5B", calm_s=0.022, tells_free_cores=tells)
    machine.hogs = 1
    machine.run(300)
    machine.counts.clear()
    speed = machine.run(8000)
    assert 2 in machine.counts  # it is tried
    assert speed >= 0.97 / (machine.calm_s * ONE_THREAD["1.5B"])


def test_a_context_that_grows_is_not_taken_for_a_busy_machine() -> None:
    machine = Machine(growth=0.0003, tells_free_cores=False)
    machine.run(6000)  # six times slower at the end
    assert set(machine.counts) == {2}


def test_another_context_is_not_taken_for_a_busy_machine() -> None:
    machine = Machine(tells_free_cores=False)
    machine.run(200)
    machine.cells, machine.calm_s = 9000, 3 * machine.calm_s
    machine.run(200)
    assert set(machine.counts) == {2}


def test_a_single_hiccup_changes_nothing() -> None:
    machine = Machine(tells_free_cores=False)
    for _ in range(20):
        machine.run(1, hiccup_s=0.3)
        machine.run(30)
    assert set(machine.counts) == {2}


def test_sequences_that_come_and_go_and_drafts_are_not_taken_for_a_busy_machine() -> None:
    machine = Machine(tells_free_cores=False)
    for rows in (1, 8, 7, 7, 4, 1, 8, 1, 4, 1) * 20:
        machine.run(machine.draw.randrange(1, 12), rows=rows)
    assert set(machine.counts) == {2}


def test_a_busy_machine_is_noticed_though_batches_change() -> None:
    machine = Machine()
    rows = (1, 4, 1, 1, 8) * 20
    for each in rows:
        machine.run(1, rows=each)
    machine.hogs = 1
    for each in rows:
        machine.run(1, rows=each)
    assert machine.notes == ["another program takes a core: 1 thread in place of 2"]


def test_what_only_slows_down_costs_a_few_short_trials() -> None:
    machine = Machine(size="1.5B", tells_free_cores=False)
    machine.run(100)
    machine.calm_s *= 2  # the processor is hot: fewer threads do not help
    machine.run(3000)
    assert machine.notes == []
    assert 0 < machine.counts.count(1) <= 14
    assert machine.control.threads_for(1) == 2


def test_many_cores_go_down_by_as_many_as_are_taken_and_up_again() -> None:
    machine = Machine(cores=8, control=ThreadControl(8))
    machine.run(100)
    machine.hogs = 3
    machine.run(300)
    assert machine.control.threads_for(1) == 5
    assert machine.notes[0].startswith("other programs take cores: ")
    machine.hogs = 0
    machine.run(3000)
    assert machine.control.threads_for(1) == 8
    assert machine.notes[-1] == "the core is free again: 8 threads"


def test_where_nothing_tells_how_many_cores_are_free_trials_go_further_down() -> None:
    machine = Machine(cores=8, control=ThreadControl(8), tells_free_cores=False)
    machine.run(100)
    machine.hogs = 3
    machine.run(1000)
    assert machine.control.threads_for(1) <= 5


def test_prompts_are_read_with_all_threads_and_say_nothing() -> None:
    machine = Machine(hogs=1)
    machine.run(300)
    assert machine.control.threads_for(1) == 1
    assert machine.control.threads_for(DECODE_ROWS + 1) == 2
    notes = list(machine.notes)
    for _ in range(100):
        machine.record(2, 5.0, rows=512)
    assert machine.notes == notes


def test_one_thread_stays_one() -> None:
    machine = Machine(control=ThreadControl(1))
    machine.run(100)
    machine.hogs = 2
    machine.run(500)
    assert set(machine.counts) == {1}
    assert machine.notes == []


def test_a_program_that_comes_and_goes_is_answered_ever_more_slowly() -> None:
    machine = Machine()
    for _ in range(60):
        machine.hogs = 1 - machine.hogs
        until_s = machine.now_s + 1.0
        while machine.now_s < until_s:
            machine.run(1)
    assert len(machine.notes) <= 20


def test_an_average_leaves_out_the_slowest_sixth() -> None:
    assert average([1.0] * 10 + [50.0, 60.0]) == 1.0
    assert average([1.0, 3.0]) == 2.0
