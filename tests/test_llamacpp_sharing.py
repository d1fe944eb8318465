"""Sequences of llama.cpp that share cells: what is read once, what is counted once, what happens to whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.backends.llamacpp.loading import FORKS
from slm_local.backends.llamacpp.sequences import KvCache
from slm_local.backends.llamacpp.shelf import Shelf
from slm_local.generation import Control, Handle, Piece, Prompt, PromptProgress, PromptRun, Sampling, Update
from tests.loading import load_settings_for

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
LONG = "What is 4 + 5? Compare 7 and 9. " * 8
CONTEXT = 512


@pytest.fixture(scope="module")
def loaded(tiny_reasoner: Path) -> Iterator[LlamaCppBackend]:
    """The embedded model, writing until something stops it, its prompts read in chunks of 64 tokens."""
    made = LlamaCppBackend()
    settings = replace(load_settings_for("llamacpp", tiny_reasoner, context=CONTEXT), batch_tokens=64)
    made.load(settings, Control(), lambda fraction: None)
    made._vocabulary.is_end = lambda token: False  # type: ignore[method-assign]
    yield made
    made.close()


@pytest.fixture
def backend(loaded: LlamaCppBackend) -> Iterator[LlamaCppBackend]:
    """The same with an empty cache and shelf; at the end its ledger is what llama.cpp itself holds."""
    loaded._cache.shelf.states.clear()
    for slot in loaded._cache.slots:
        loaded._cache.cut(slot, 0)
    yield loaded
    for slot in loaded._cache.slots:
        held = loaded._lib.llama_memory_seq_pos_max(loaded._cache._memory, slot.sequence)
        assert held == len(slot.cells) - 1
        assert slot.donor is None
        assert slot.waiters == []
    for handle in [slot.handle for slot in loaded._by_handle.values()]:
        assert handle is not None
        loaded.remove(handle)


def prompt(text: str) -> Prompt:
    return Prompt(runs=(PromptRun(text=text, allows_control=True),))


def added(backend: LlamaCppBackend, text: str, sampling: Sampling | None = None) -> Handle:
    return backend.add(prompt(text), sampling or Sampling())


def drained(backend: LlamaCppBackend, handles: list[Handle], count: int) -> dict[int, list[Update]]:
    """Step until each of the sequences has given `count` pieces; later ones are dropped."""
    found: dict[int, list[Update]] = {handle.id: [] for handle in handles}
    while any(sum(isinstance(u, Piece) for u in found[handle.id]) < count for handle in handles):
        assert backend._cache.live(), "all have ended"
        for update in backend.step(Control()):
            assert update.handle is not None
            pieces = sum(isinstance(u, Piece) for u in found.get(update.handle.id, ()))
            if update.handle.id in found and pieces < count:
                found[update.handle.id].append(update)
    return found


def ids(updates: list[Update]) -> list[int]:
    return [token for update in updates if isinstance(update, Piece) for token in update.ids]


def alone(backend: LlamaCppBackend, text: str, count: int, sampling: Sampling | None = None) -> list[int]:
    handle = added(backend, text, sampling)
    found = ids(drained(backend, [handle], count)[handle.id])
    backend.remove(handle)
    return found


def removed(backend: LlamaCppBackend, handles: list[Handle]) -> None:
    for handle in handles:
        backend.remove(handle)


def test_eight_sequences_with_one_prompt_cost_the_prompt_and_eight_tails(backend: LlamaCppBackend) -> None:
    before = backend.decoded_tokens
    handles = [added(backend, LONG) for _ in range(8)]
    found = drained(backend, handles, 5)
    length = handles[0].prompt_tokens or 0
    assert length > 128  # several chunks
    assert backend.decoded_tokens - before == (length - 1) + 8 * 5  # the prompt's last token is read by each
    assert [handle.cached_tokens for handle in handles] == [0] + 7 * [length - 1]
    assert backend._cache.free_cells() == backend._cache.tokens - (length - 1) - 8 * 5
    texts = {tuple(ids(found[handle.id])) for handle in handles}
    removed(backend, handles)
    assert texts == {tuple(alone(backend, LONG, 5))}


def test_one_that_waited_tells_its_share_when_it_gets_it(backend: LlamaCppBackend) -> None:
    handles = [added(backend, LONG) for _ in range(2)]
    told = {
        handle.id: [u for u in updates if isinstance(u, PromptProgress)]
        for handle, updates in zip(handles, drained(backend, handles, 1).values(), strict=True)
    }
    removed(backend, handles)
    length = handles[0].prompt_tokens
    assert [(u.done_tokens, u.total_tokens) for u in told[handles[1].id]] == [
        (handles[1].cached_tokens, length),
        (length, length),
    ]
    assert len(told[handles[0].id]) > 2


def test_a_prompt_that_goes_on_from_another_ones_start_reads_the_rest_only(backend: LlamaCppBackend) -> None:
    first = added(backend, LONG)
    drained(backend, [first], 3)
    before = backend.decoded_tokens
    second = added(backend, LONG + "And what is 8 + 8? Tell me.")
    drained(backend, [second], 1)
    removed(backend, [first, second])
    assert (second.cached_tokens or 0) >= (first.prompt_tokens or 0) - 4  # the seam may be tokenized another way
    read = (second.prompt_tokens or 0) - (second.cached_tokens or 0)
    assert backend.decoded_tokens - before <= read + read  # the first one wrote a token a step beside it


def test_a_fork_writes_what_the_original_writes_and_changes_nothing_of_it(backend: LlamaCppBackend) -> None:
    whole = alone(backend, QUESTION, 40)
    original = added(backend, QUESTION)
    start = ids(drained(backend, [original], 15)[original.id])
    fork = backend.fork(original, "", Sampling())
    assert fork is not None
    assert (fork.prompt_tokens, fork.cached_tokens) == (
        (original.prompt_tokens or 0) + 15,
        (original.prompt_tokens or 0) + 14,
    )
    found = drained(backend, [original, fork], 20)
    removed(backend, [original, fork])
    assert start + ids(found[original.id]) == whole[:35]
    assert ids(found[fork.id]) == whole[15:35]


def test_a_fork_with_text_is_an_injection_into_a_second_run(backend: LlamaCppBackend) -> None:
    text = " So the answer is"
    whole = alone(backend, QUESTION, 40)
    second = added(backend, QUESTION)
    drained(backend, [second], 12)
    backend.inject(second, text)
    injected = backend.token_count(text)
    expected = ids(drained(backend, [second], injected + 10)[second.id])[injected:]
    backend.remove(second)
    original = added(backend, QUESTION)
    drained(backend, [original], 12)
    before = backend.decoded_tokens
    forks = [backend.fork(original, text, Sampling()) for _ in range(2)]
    live = [fork for fork in forks if fork is not None]
    found = drained(backend, [original, *live], 10)
    removed(backend, [original, *live])
    assert [ids(found[fork.id]) for fork in live] == [expected, expected]
    assert ids(found[original.id]) == whole[12:22]
    assert backend.decoded_tokens - before <= 2 * (injected + 11) + 13


def test_a_fork_leaves_no_cells_behind_and_those_it_shared_to_the_original(backend: LlamaCppBackend) -> None:
    original = added(backend, QUESTION)
    drained(backend, [original], 5)
    free = backend._cache.free_cells()
    fork = backend.fork(original, " Well", Sampling())
    assert fork is not None
    assert backend._cache.free_cells() == free
    backend.remove(fork)
    assert backend._cache.free_cells() == free
    rest = ids(drained(backend, [original], 10)[original.id])
    backend.remove(original)
    assert rest == alone(backend, QUESTION, 15)[5:]


def test_a_fork_outlives_its_original(backend: LlamaCppBackend) -> None:
    whole = alone(backend, QUESTION, 30)
    original = added(backend, QUESTION)
    drained(backend, [original], 10)
    fork = backend.fork(original, "", Sampling())
    assert fork is not None
    backend.remove(original)
    other = added(backend, QUESTION[:20] + " something else")  # may take the original's slot and cut it
    found = drained(backend, [fork, other], 20)
    removed(backend, [fork, other])
    assert ids(found[fork.id]) == whole[10:]


def test_a_fork_of_one_that_still_reads_its_prompt_waits_for_it(backend: LlamaCppBackend) -> None:
    before = backend.decoded_tokens
    original = added(backend, LONG)
    backend.step(Control())
    fork = backend.fork(original, "", Sampling())
    assert fork is not None
    found = drained(backend, [original, fork], 3)
    removed(backend, [original, fork])
    assert ids(found[original.id]) == ids(found[fork.id])
    assert backend.decoded_tokens - before == (original.prompt_tokens or 0) - 1 + 2 * 3


def test_a_fork_goes_on_inside_a_character(backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    original = added(backend, QUESTION)
    drained(backend, [original], 3)
    halves = iter(["日".encode()[:2], *["日".encode()[2:]] * 2])
    with monkeypatch.context() as patch:
        patch.setattr(backend._vocabulary, "piece", lambda token: next(halves))
        drained(backend, [original], 1)
        fork = backend.fork(original, "", Sampling())
        assert fork is not None
        found = drained(backend, [original, fork], 1)
    removed(backend, [original, fork])
    assert ["".join(u.text for u in updates if isinstance(u, Piece)) for updates in found.values()] == ["日", "日"]


def test_there_is_no_fork_when_no_slot_is_left_for_it(backend: LlamaCppBackend) -> None:
    original = added(backend, QUESTION)
    drained(backend, [original], 2)
    forks = [backend.fork(original, "", Sampling()) for _ in range(FORKS + 1)]
    assert [fork is None for fork in forks] == FORKS * [False] + [True]
    requests = [added(backend, f"{number} {LONG}") for number in range(backend.max_sequences - 1)]
    assert len({slot.sequence for slot in backend._by_handle.values()}) == backend.max_sequences + FORKS
    removed(backend, [original, *requests, *(fork for fork in forks if fork is not None)])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_when_the_one_that_reads_is_removed_another_reads_on_for_the_rest(backend: LlamaCppBackend, steps: int) -> None:
    expected = alone(backend, LONG, 4)
    for slot in backend._cache.slots:
        backend._cache.cut(slot, 0)
    before = backend.decoded_tokens
    handles = [added(backend, LONG) for _ in range(4)]
    for _ in range(steps):
        backend.step(Control())
    read = backend.decoded_tokens - before
    backend.remove(handles[0])
    found = drained(backend, handles[1:], 4)
    removed(backend, handles)
    assert [ids(found[handle.id]) for handle in handles[1:]] == 3 * [expected]
    assert backend.decoded_tokens - before == (handles[0].prompt_tokens or 0) - 1 + 3 * 4
    last = [u.handle for u in found[handles[1].id] if isinstance(u, PromptProgress)][-1]
    assert last is not None
    assert last.cached_tokens == read  # the second one read the rest: that is no cache


def test_a_cancelled_step_loses_nothing_of_a_shared_reading(backend: LlamaCppBackend) -> None:
    expected = alone(backend, LONG, 4)
    for slot in backend._cache.slots:
        backend._cache.cut(slot, 0)
    before = backend.decoded_tokens
    handles = [added(backend, LONG) for _ in range(3)]
    backend.step(Control())
    for _ in range(3):
        control = Control()
        backend._arm(control)
        backend._abort.set()  # as if cancelled between the check and the decode
        assert [u for u in backend.step(control) if isinstance(u, Piece)] == []
    found = drained(backend, handles, 4)
    removed(backend, handles)
    assert [ids(found[handle.id]) for handle in handles] == 3 * [expected]
    assert backend.decoded_tokens - before == (handles[0].prompt_tokens or 0) - 1 + 3 * 4


def test_one_that_waits_for_another_that_waits_gets_the_longer_share(backend: LlamaCppBackend) -> None:
    longer = LONG + LONG
    before = backend.decoded_tokens
    handles = [added(backend, LONG + "Why?"), added(backend, longer), added(backend, longer)]
    found = drained(backend, handles, 2)
    removed(backend, handles)
    assert (handles[0].prompt_tokens or 0) - 6 < (handles[1].cached_tokens or 0) < (handles[2].cached_tokens or 0)
    assert ids(found[handles[1].id]) == ids(found[handles[2].id])
    once = sum((handle.prompt_tokens or 0) - (handle.cached_tokens or 0) for handle in handles)
    assert backend.decoded_tokens - before < once + 3 * 2 + 12  # what the first one writes meanwhile


def test_an_injection_into_one_that_waits_comes_after_its_prompt(backend: LlamaCppBackend) -> None:
    expected = added(backend, LONG)
    backend.inject(expected, " Well,")
    told = ids(drained(backend, [expected], 6)[expected.id])
    backend.remove(expected)
    for slot in backend._cache.slots:
        backend._cache.cut(slot, 0)
    handles = [added(backend, LONG) for _ in range(2)]
    backend.inject(handles[1], " Well,")
    found = drained(backend, handles, 6)
    removed(backend, handles)
    assert ids(found[handles[1].id]) == told


def test_an_injection_too_long_for_one_that_waits_ends_it_and_not_its_donor(backend: LlamaCppBackend) -> None:
    handles = [added(backend, LONG) for _ in range(2)]
    backend.inject(handles[1], "word " * CONTEXT)
    found: list[Update] = []
    while not any(isinstance(update, Piece) and update.handle == handles[0] for update in found):
        found += backend.step(Control())
    removed(backend, handles)
    assert [u.end for u in found if isinstance(u, Piece) and u.handle == handles[1]] == ["context"]


def test_another_conversation_stays_where_it_is_and_its_own_next_turn_takes_it_over(backend: LlamaCppBackend) -> None:
    system = "You are a careful and friendly assistant. "
    first = added(backend, system + LONG[:96])
    drained(backend, [first], 20)
    backend.remove(first)
    other = added(backend, system + "Name three colours and say which is best for a wall in a kitchen, and why.")
    drained(backend, [other], 2)
    backend.remove(other)
    assert (other.cached_tokens or 0) > 8
    shelved = [len(each.cells) for each in backend._cache.shelf.states]
    assert shelved == [(first.prompt_tokens or 0) + 19]  # not cut back to what the two share
    again = added(backend, system + LONG)
    backend.remove(again)
    assert (again.cached_tokens or 0) > 50
    assert len([slot for slot in backend._cache.slots if slot.cells]) == len(backend._cache.shelf.states) == 1


def test_a_cut_of_one_leaves_the_cells_to_the_others(backend: LlamaCppBackend) -> None:
    handles = [added(backend, LONG) for _ in range(3)]
    drained(backend, handles, 2)
    cache, length = backend._cache, handles[0].prompt_tokens or 0
    first, second, third = (backend._by_handle[handle.id] for handle in handles)
    assert cache.tokens - cache.free_cells() == (length - 1) + 3 * 2
    removed(backend, handles[:1])
    cache.cut(first, 10)
    assert cache.tokens - cache.free_cells() == (length - 1) + 2 * 2
    rest = drained(backend, handles[1:], 5)
    removed(backend, handles)
    assert ids(rest[handles[1].id]) == ids(rest[handles[2].id]) == alone(backend, LONG, 7)[2:]
    assert (len(second.cells), len(third.cells)) == (length + 6, length + 6)


def test_the_ledger_counts_as_many_cells_as_it_takes_to_fill_the_cache(backend: LlamaCppBackend) -> None:
    handles = [added(backend, LONG) for _ in range(9)]
    drained(backend, handles, 2)
    ended: dict[int, str | None] = {}
    while len(ended) < len(handles):
        assert backend._cache.free_cells() >= 0
        for update in backend.step(Control()):
            if isinstance(update, Piece) and update.end:
                assert update.handle.id not in ended
                ended[update.handle.id] = update.end
                if len(ended) == 1:
                    assert backend._cache.free_cells() < len(handles)
                backend.remove(update.handle)
    assert set(ended.values()) == {"context"}


def test_a_seed_gives_the_same_tokens_whatever_the_width(backend: LlamaCppBackend) -> None:
    samplings = [Sampling(temperature=1.0, top_p=0.95, seed=seed) for seed in range(8)]
    found = {}
    for width in (1, 3, 8):
        for begin in range(0, 8, width):
            handles = [added(backend, LONG, sampling) for sampling in samplings[begin : begin + width]]
            for place, updates in enumerate(drained(backend, handles, 24).values()):
                found[width, begin + place] = ids(updates)
            removed(backend, handles)
    assert all(found[3, seed] == found[8, seed] == found[1, seed] for seed in range(8))
    assert len({tuple(found[8, seed]) for seed in range(8)}) > 4


def test_a_real_model_shares_and_forks_too(smollm2: Path) -> None:
    made = LlamaCppBackend()
    made.load(load_settings_for("llamacpp", smollm2, context=512), Control(), lambda fraction: None)
    handles = [made.add(prompt(QUESTION), Sampling()) for _ in range(3)]
    found = drained(made, handles, 4)
    turn = "<|im_end|>\n<|im_start|>user\nAnd of Italy?<|im_end|>\n<|im_start|>assistant\n"
    fork = made.fork(handles[0], turn, Sampling())
    assert fork is not None
    said = drained(made, [*handles, fork], 3)
    said[fork.id] += drained(made, [fork], 2)[fork.id]
    made.close()
    whole = {tuple(ids(found[h.id]) + ids(said[h.id])) for h in handles}
    assert len(whole) == 1
    text = "".join(update.text for update in said[fork.id] if isinstance(update, Piece))
    assert text.startswith("The capital of Italy is")


class StatefulMemory:
    """A recurrent model's memory: one state a sequence, at its last position; a copy is the whole state."""

    def __init__(self) -> None:
        self.at: dict[int, int] = {}

    def llama_get_memory(self, context: Any) -> None:
        return None

    def llama_memory_seq_cp(self, memory: Any, source: int, target: int, start: int, end: int) -> None:
        self.at[target] = self.at.get(source, -1)

    def llama_memory_seq_rm(self, memory: Any, sequence: int, start: int, end: int) -> bool:
        if start > 0 and self.at.get(sequence, -1) >= start:
            return False
        if start <= 0:
            self.at[sequence] = -1
        return True

    def llama_memory_seq_pos_min(self, memory: Any, sequence: int) -> int:
        return self.at.get(sequence, -1)

    llama_memory_seq_pos_max = llama_memory_seq_pos_min


@pytest.mark.parametrize(("read", "shared"), [(9, 9), (10, 0)], ids=["just as far", "further on"])
def test_a_state_is_shared_only_where_it_is_that_of_the_very_tokens(read: int, shared: int) -> None:
    memory = StatefulMemory()
    cache = KvCache(memory, None, Shelf(memory, None, tokens=100), tokens=100, sequences=3, window=0, idle_tokens=1000)
    first = cache.take(range(10))
    first.handle = Handle(id=1, prompt_tokens=10, cached_tokens=0)
    second = cache.take(range(10))
    second.handle = Handle(id=2, prompt_tokens=10, cached_tokens=9)
    assert (second.donor, second.goal) == (first, 9)
    first.cells, first.queue, first.prompt_left = list(range(read)), list(range(read, 10)), 10 - read
    memory.at[first.sequence] = read - 1
    assert cache.settle([first, second]) == [second]
    assert (second.cells, second.queue) == (list(range(shared)), list(range(shared, 10)))
    assert cache.free_cells() == 100 - read
