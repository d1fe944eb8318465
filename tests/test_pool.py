"""Several models kept open in one process: order, room, keep-alive, and what becomes of those who go away."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from slm_local.config import Settings, load_settings
from slm_local.engine import Choice, Meaning, ranked
from slm_local.errors import DoesNotFit, Interrupted, ServerBusy, SlmError, UnknownModel, UsageError, WorkerCrashed
from slm_local.generation import Control
from slm_local.registry import load_registry
from slm_local.server import keeper as keeper_module
from slm_local.server.places import state_of
from slm_local.server.pool import Change, Pool
from tests.conftest import ScriptWriter
from tests.test_worker import wait_until

pytestmark = pytest.mark.usefixtures("scripted_allowed")

PoolMaker = Callable[..., Pool]
ModelWriter = Callable[..., str]


@pytest.fixture
def changes() -> list[Change]:
    return []


@pytest.fixture
def make_pool(changes: list[Change]) -> Iterator[PoolMaker]:
    made: list[Pool] = []

    def make(**options: Any) -> Pool:
        made.append(
            Pool(
                load_registry,
                lambda own: load_settings({}, reference_settings=own),
                report=changes.append,
                **options,
            )
        )
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def model(script: ScriptWriter) -> ModelWriter:
    def write(name: str, **setup: Any) -> str:
        return f"scripted:{script({'text': f'I am {name}', 'end': 'stop'}, setup=setup or None, name=name)}"

    return write


def in_thread(act: Callable[[], object]) -> list[SlmError]:
    """Run something in a thread; the error that ended it comes into the list."""
    failures: list[SlmError] = []

    def run() -> None:
        try:
            act()
        except SlmError as error:
            failures.append(error)

    threading.Thread(target=run, daemon=True).start()
    return failures


def told(changes: list[Change]) -> list[tuple[str, str, str | None]]:
    return [(each.what, Path(each.model).stem, each.reason) for each in changes]


def test_a_model_is_opened_once_and_answers_all_who_ask(
    make_pool: PoolMaker, model: ModelWriter, changes: list[Change]
) -> None:
    pool, one = make_pool(), model("one")
    with pool.lease(one) as first, pool.lease(one) as second:
        assert first.engine is second.engine
        assert first.engine.reply("hi").answer == "I am one"
        assert [(each.live, each.waiting, each.expires_s) for each in pool.running()] == [(2, 0, None)]
    running = pool.running()[0]
    assert (running.live, running.pid, running.model) == (0, first.engine.pid, one)
    assert running.expires_s is not None
    assert 0.0 < running.expires_s <= 300.0
    assert (running.memory_bytes or 0) > 2**20
    assert told(changes) == [("load", "one", None)]


def test_what_is_idle_is_closed_in_time_and_opened_again_when_asked_for(
    make_pool: PoolMaker, model: ModelWriter, changes: list[Change]
) -> None:
    pool, one = make_pool(keep_alive_s=0.0), model("one")
    for _ in range(2):
        with pool.lease(one) as lease:
            assert lease.engine.reply("hi").answer == "I am one"
        wait_until(lambda: not pool.running())
        assert lease.engine.pid is None
    assert told(changes) == [("load", "one", None), ("unload", "one", "idle")] * 2


def test_a_model_is_told_of_before_it_is_seen_to_be_open_or_gone(make_pool: PoolMaker, model: ModelWriter) -> None:
    seen: list[tuple[str, list[bool]]] = []
    pool = make_pool(keep_alive_s=0.0)
    pool._keeper._report = lambda change: seen.append((change.what, [each.plan is not None for each in pool.running()]))
    pool.lease(model("one")).release()
    wait_until(lambda: not pool.running())
    assert seen == [("load", [False]), ("unload", [True])]


def test_an_attached_client_keeps_its_model_open(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one = make_pool(keep_alive_s=0.0), model("one")
    attachment = pool.attach(one)
    with attachment.lease() as lease:
        before = lease.engine.pid
    with pool.lease(one) as lease:
        assert lease.engine.pid == before
    assert [(each.attached, each.expires_s) for each in pool.running()] == [(1, None)]
    attachment.close()
    wait_until(lambda: not pool.running())


def test_the_keep_alive_that_was_asked_for_last_holds(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one = make_pool(), model("one")
    pool.attach(one, keep_alive_s=3600.0).close()
    assert (pool.running()[0].expires_s or 0.0) > 3000.0
    pool.attach(one, keep_alive_s=0.0).close()
    wait_until(lambda: not pool.running())


def test_those_who_wait_are_let_in_in_their_order(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one = make_pool(), model("one")
    held = [pool.lease(one) for _ in range(4)]  # as many as the scripted engine runs at once
    let_in: list[int] = []

    def ask(number: int) -> None:
        with pool.lease(one):
            let_in.append(number)

    for number in range(5):
        in_thread(lambda number=number: ask(number))  # type: ignore[misc]
        wait_until(lambda number=number: pool.running()[0].waiting == number + 1)  # type: ignore[misc]
    assert not let_in
    held.pop().release()  # one place: one after the other
    wait_until(lambda: len(let_in) == 5)
    assert let_in == list(range(5))
    for lease in held:
        lease.release()


def test_more_than_may_wait_are_refused(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one = make_pool(queue_limit=1), model("one")
    held = [pool.lease(one) for _ in range(4)]
    in_thread(lambda: pool.lease(one).release())
    wait_until(lambda: pool.running()[0].waiting == 1)
    with pytest.raises(ServerBusy, match="1 requests wait for scripted"):
        pool.lease(one)
    for lease in held:
        lease.release()


def test_one_who_goes_away_while_he_waits_leaves_no_trace(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one, control = make_pool(), model("one"), Control()
    held = [pool.lease(one) for _ in range(4)]
    failures = in_thread(lambda: pool.lease(one, control=control))
    wait_until(lambda: pool.running()[0].waiting == 1)
    control.cancel()
    wait_until(lambda: bool(failures))
    assert isinstance(failures[0], Interrupted)
    assert pool.running()[0].waiting == 0
    for lease in held:
        lease.release()


def test_a_load_for_which_nobody_waits_any_more_is_ended(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, slow, control = make_pool(), model("slow", load_fault="slow"), Control()
    statuses: list[str] = []
    failures = in_thread(lambda: pool.lease(slow, control=control, on_status=statuses.append))
    wait_until(lambda: bool(statuses))
    assert pool.running()[0].plan is None
    control.cancel()
    wait_until(lambda: bool(failures) and not pool.running())
    with pool.lease(model("one")) as lease:
        assert lease.engine.reply("hi").answer == "I am one"


def test_what_can_not_be_opened_fails_for_all_who_wait_and_the_pool_lives_on(
    make_pool: PoolMaker, model: ModelWriter
) -> None:
    pool, broken = make_pool(), model("broken", load_fault="exit")
    failures = in_thread(lambda: pool.lease(broken))
    with pytest.raises(WorkerCrashed):
        pool.lease(broken)
    wait_until(lambda: bool(failures))
    assert isinstance(failures[0], WorkerCrashed)
    wait_until(lambda: pool.running() == ())
    with pytest.raises(UnknownModel, match="near it"):
        pool.lease("tiny-reasonr")
    pool.lease(model("one")).release()


def test_settings_that_are_fixed_at_load_open_a_model_of_their_own(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one = make_pool(), model("one")
    with (
        pool.lease(one) as plain,
        pool.lease(f"{one}@temperature=0.5,no-think") as warmer,
        pool.lease(one, Settings(context_tokens=512)) as short,
        pool.lease(f"{one}@ctx=512") as short_too,
    ):
        assert plain.engine is warmer.engine
        assert warmer.maker.sampling().temperature == 0.5
        assert warmer.maker.request("hi").think == "off"
        assert plain.maker.sampling().temperature == 0.0
        assert plain.maker is plain.engine
        assert short.engine is short_too.engine is not plain.engine
        assert short.engine.facts.context_tokens == 512


def test_guessing_ahead_may_be_done_without_but_not_forced_on_who_refuses_it(
    make_pool: PoolMaker, model: ModelWriter
) -> None:
    pool, one = make_pool(), model("one")
    with pool.lease(f"{one}@speculation=false") as plain, pool.lease(one) as any_way:
        assert plain.engine is any_way.engine
    pool.stop()
    with pool.lease(one) as guessing, pool.lease(f"{one}@speculation=false") as plain:
        assert plain.engine is not guessing.engine


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every scripted model need 60 of 100 bytes that are free where none is open."""

    def cramped(meaning: Meaning, *, held_bytes: int = 0) -> Choice:
        choice = ranked(meaning)
        plan = replace(choice.plans[0], memory_bytes=60, free_ram_bytes=100 - held_bytes, fits=held_bytes <= 40)
        return replace(choice, plans=(plan,))

    monkeypatch.setattr(keeper_module, "ranked", cramped)
    monkeypatch.setattr(keeper_module, "taken_bytes", lambda pid: 0)


@pytest.mark.usefixtures("small")
def test_the_model_that_was_idle_longest_makes_room(
    make_pool: PoolMaker, model: ModelWriter, changes: list[Change]
) -> None:
    pool = make_pool()
    pool.lease(model("one")).release()
    pool.lease(model("two")).release()
    assert told(changes) == [("load", "one", None), ("unload", "one", "memory"), ("load", "two", None)]


@pytest.mark.usefixtures("small")
def test_a_model_waits_for_room_while_others_are_at_work_and_none_overtakes_it(
    make_pool: PoolMaker, model: ModelWriter
) -> None:
    pool, one, two = make_pool(), model("one"), model("two")
    held = pool.lease(one)
    order: list[str] = []

    def ask(name: str) -> None:
        with pool.lease(name) as lease:
            order.append(lease.engine.reply("hi").answer)

    in_thread(lambda: ask(two))
    wait_until(lambda: any(place.is_blocked for place in pool._places))
    in_thread(lambda: ask(one))  # there are places, but it came later
    wait_until(lambda: pool.running()[0].waiting == 1)
    assert not order
    held.release()
    wait_until(lambda: len(order) == 2)
    assert order == ["I am two", "I am one"]


def test_what_would_not_fit_alone_is_refused_and_closes_nothing(
    make_pool: PoolMaker, model: ModelWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, one = make_pool(), model("one")
    pool.lease(one).release()

    def never(meaning: Meaning, *, held_bytes: int = 0) -> Choice:
        choice = ranked(meaning)
        return replace(choice, plans=(replace(choice.plans[0], fits=False, short_bytes=10**12),))

    monkeypatch.setattr(keeper_module, "ranked", never)
    with pytest.raises(DoesNotFit):
        pool.lease(model("two"))
    assert [each.model for each in pool.running()] == [one]


def test_a_model_whose_file_has_changed_is_opened_anew(
    make_pool: PoolMaker, model: ModelWriter, script: ScriptWriter, changes: list[Change]
) -> None:
    pool, one = make_pool(), model("one")
    with pool.lease(one) as before:
        script({"text": "I am another", "end": "stop"}, name="one")
        with pool.lease(one) as after:
            assert after.engine.reply("hi").answer == "I am another"
        assert before.engine.reply("hi").answer == "I am one"  # what is under way goes on
    wait_until(lambda: len(pool.running()) == 1)
    assert told(changes)[-1] == ("unload", "one", "changed")


def test_what_changes_in_any_file_of_a_model_is_seen(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    files = [*parts, folder.parent / "openvino_model.xml", folder / "openvino_model.bin"]
    for file in files:
        file.write_bytes(b"old")
    for asked, changed in ((parts[0], parts[1]), (folder.parent, files[3])):
        before = state_of(str(asked))
        assert before == state_of(str(asked)) != ()
        new = changed.with_name("new")
        new.write_bytes(b"new")
        os.utime(new, ns=(0, changed.stat().st_mtime_ns))
        os.replace(new, changed)
        assert state_of(str(asked)) != before
    parts[1].unlink()
    assert state_of(str(parts[0])) == state_of(None) == ()


def test_what_is_to_go_is_closed_unless_somebody_is_at_it(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one, two = make_pool(), model("one"), model("two")
    pool.lease(two).release()
    target = one.removeprefix("scripted:")
    assert pool.free(target) == ()
    attachment = pool.attach(one)
    with pytest.raises(UsageError, match="in use in the server") as refused:
        pool.free(target)
    assert refused.value.hint == f"slm stop {one}"
    attachment.close()
    assert pool.free(target) == (one,)
    assert [each.model for each in pool.running()] == [two]


def test_stopping_a_model_ends_what_is_at_it(make_pool: PoolMaker, script: ScriptWriter) -> None:
    pool = make_pool()
    endless = f"scripted:{script({'text': 'on and on ', 'delay': 0.05, 'times': 10_000}, name='endless')}"
    control = Control()
    answers: list[str] = []

    def ask() -> None:
        with pool.lease(endless, control=control) as lease:
            answers.append(lease.engine.reply("hi", control).finish)

    in_thread(ask)
    wait_until(lambda: bool(pool.running()) and pool.running()[0].live == 1)
    with pytest.raises(UsageError, match="other is not open"):
        pool.stop("other")
    assert pool.stop(endless.upper()) == (endless,)
    wait_until(lambda: bool(answers))
    assert answers == ["cancelled"]
    assert pool.running() == ()


def test_a_child_that_died_is_replaced_at_the_next_request(make_pool: PoolMaker, model: ModelWriter) -> None:
    pool, one = make_pool(), model("one")
    with pool.lease(one) as lease:
        lease.engine._worker.kill()  # type: ignore[union-attr]
    with pool.lease(one) as lease:
        assert lease.engine.reply("hi").answer == "I am one"


def test_a_model_whose_engine_was_killed_is_not_listed_before_it_is_wanted_again(
    make_pool: PoolMaker, model: ModelWriter
) -> None:
    pool, one = make_pool(), model("one")
    attachment = pool.attach(one)
    (running,) = pool.running()
    assert running.pid is not None
    psutil.Process(running.pid).kill()
    wait_until(lambda: not pool.running())
    assert attachment.engine.pid is None
    with attachment.lease() as lease:
        assert [(each.plan, each.pid, each.live) for each in pool.running()] == [(None, None, 1)]
        assert lease.engine.reply("hi").answer == "I am one"
        assert [(each.plan, each.pid) for each in pool.running()] == [(lease.engine.plan, lease.engine.pid)]
    assert [each.attached for each in pool.running()] == [1]


def test_closing_ends_every_process_and_refuses_what_comes_later(
    make_pool: PoolMaker, model: ModelWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "END_WAIT_S", 600.0)  # which it does not wait for
    pool, one = make_pool(), model("one")
    lease = pool.lease(one)
    in_thread(pool.close)
    lease.release()
    closing = threading.Thread(target=pool.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert lease.engine.pid is None
    with pytest.raises(ServerBusy, match="ending"):
        pool.lease(one)


def test_the_embedded_model_is_shared_by_name_and_by_path(make_pool: PoolMaker, tiny_reasoner: Path) -> None:
    pool = make_pool()
    with pool.lease("tiny-reasoner") as lease, pool.lease("tiny", Settings(threads=lease.engine.plan.threads)) as other:
        assert lease.engine is other.engine
        assert lease.engine.facts.sequences > 1
    assert lease.engine.plan.variant.path == str(tiny_reasoner)
