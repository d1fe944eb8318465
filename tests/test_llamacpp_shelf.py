"""Idle conversations: out of the way while others are answered, and back token for token when they go on."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.backends.llamacpp.shelf import SHARE_OF_MEMORY, Shelf
from slm_local.generation import Control, Handle, Piece, Prompt, Sampling
from tests.loading import load_settings_for

FIRST, SECOND = tuple(range(300, 400)), tuple(range(500, 620))
STATE_BYTES = 1000


class Copier:
    """The part of llama.cpp that copies states: each is STATE_BYTES, its first byte the sequence's number."""

    def __init__(self, *, writes: int = STATE_BYTES) -> None:
        self.writes = writes

    def llama_state_seq_get_size(self, context: Any, sequence: int) -> int:
        return STATE_BYTES

    def llama_state_seq_get_data(self, context: Any, state: Any, size: int, sequence: int) -> int:
        ctypes.memset(state, sequence, 1)
        return self.writes

    def llama_state_seq_set_data(self, context: Any, state: Any, size: int, sequence: int) -> int:
        return self.writes


def shelf_for(states: float, copier: Copier | None = None) -> Shelf:
    """Return a shelf that has room for so many states."""
    made = Shelf(copier or Copier(), None, tokens=20)
    total = int(states * STATE_BYTES * SHARE_OF_MEMORY)
    made._available = lambda: total - sum(each.size for each in made.states)
    return made


def test_where_memory_is_short_the_state_put_away_first_is_dropped() -> None:
    shelf = shelf_for(2.5)
    for sequence in range(4):
        assert shelf.put(sequence, [sequence] * 5, 5)
    assert [each.cells[0] for each in shelf.states] == [2, 3]
    assert [each.state[0] for each in shelf.states] == [2, 3]


def test_a_state_without_room_is_not_put_away_and_drops_no_other() -> None:
    shelf = shelf_for(1.5)
    assert shelf.put(0, [1, 2, 3], 3)
    shelf._available = lambda: 0
    assert not shelf.put(1, [4, 5, 6], 3)
    assert [each.cells for each in shelf.states] == [[1, 2, 3]]


def test_the_shelf_holds_no_more_tokens_than_the_cache() -> None:
    shelf = shelf_for(9)
    for sequence in range(3):
        assert shelf.put(sequence, [sequence] * 9, 9)
    assert [each.cells[0] for each in shelf.states] == [1, 2]


def test_a_state_that_llama_cpp_would_not_copy_whole_is_not_kept() -> None:
    shelf = shelf_for(4, Copier(writes=STATE_BYTES - 1))
    assert not shelf.put(0, [1, 2, 3], 3)
    assert shelf.longest([1, 2, 3]) is None


def test_a_conversation_replaces_its_own_beginning() -> None:
    shelf = shelf_for(4)
    assert shelf.put(0, [1, 2, 3], 3)
    assert shelf.put(0, [1, 2, 3, 4], 3)
    assert [each.cells for each in shelf.states] == [[1, 2, 3, 4]]
    found = shelf.longest([1, 2, 3, 9])
    assert found is not None
    assert found.cells == [1, 2, 3, 4]
    assert shelf.longest([9]) is None


@pytest.fixture(scope="module")
def loaded(tiny_reasoner: Path) -> Iterator[LlamaCppBackend]:
    made = LlamaCppBackend()
    made.load(load_settings_for("llamacpp", tiny_reasoner, context=512), Control(), lambda fraction: None)
    made._vocabulary.is_end = lambda token: False  # type: ignore[method-assign]
    yield made
    made.close()


@pytest.fixture
def backend(loaded: LlamaCppBackend) -> LlamaCppBackend:
    """The embedded model, writing until something stops it, with nothing held."""
    emptied(loaded)
    return loaded


def emptied(backend: LlamaCppBackend) -> None:
    """Have cache and shelf forget everything."""
    backend._cache.shelf.states.clear()
    backend._cache._mixed_steps = 0
    for slot in backend._cache.slots:
        backend._cache.cut(slot, 0)


def written(backend: LlamaCppBackend, ids: tuple[int, ...], count: int) -> tuple[Handle, list[int]]:
    """Return the sequence's handle and the greedy tokens that follow."""
    handle = backend.add(Prompt(ids=ids), Sampling())
    found: list[int] = []
    while len(found) < count:
        found += [token for update in backend.step(Control()) if isinstance(update, Piece) for token in update.ids]
    backend.remove(handle)
    return handle, found


def held(backend: LlamaCppBackend) -> list[int]:
    """Return the lengths of what the cache holds."""
    return [len(slot.cells) for slot in backend._cache.slots if slot.cells]


def test_a_conversation_comes_back_from_the_shelf_token_for_token(backend: LlamaCppBackend) -> None:
    _, begun = written(backend, FIRST, 20)
    longer = (*FIRST, *begun)
    _, wanted = written(backend, longer, 20)
    emptied(backend)

    written(backend, FIRST, 20)
    assert held(backend) == [len(FIRST) + 19]
    written(backend, SECOND, 5)
    assert held(backend) == [len(SECOND) + 4], "the other one is in nobody's way"
    handle, found = written(backend, longer, 20)
    assert handle.cached_tokens == len(FIRST) + 19
    assert found == wanted
    assert held(backend) == [len(FIRST) + 39], "and the second one went to the shelf"
    assert [len(each.cells) for each in backend._cache.shelf.states] == [len(SECOND) + 4]


def test_where_there_is_no_memory_it_stays_in_the_cache(
    backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend._cache.shelf, "_available", lambda: 0)
    written(backend, FIRST, 5)
    written(backend, SECOND, 5)
    assert held(backend) == [len(FIRST) + 4, len(SECOND) + 4]
    handle, _ = written(backend, FIRST, 1)
    assert handle.cached_tokens == len(FIRST) - 1


def test_a_beginning_that_is_shared_is_brought_back_and_the_conversation_stays_on_the_shelf(
    backend: LlamaCppBackend,
) -> None:
    written(backend, FIRST, 20)
    written(backend, SECOND, 5)
    handle, _ = written(backend, (*FIRST[:80], *range(700, 720)), 5)
    assert handle.cached_tokens == 80
    assert len(FIRST) + 19 in [len(each.cells) for each in backend._cache.shelf.states]


def test_what_few_tokens_are_shared_is_not_worth_a_copy(backend: LlamaCppBackend) -> None:
    written(backend, FIRST, 20)
    written(backend, SECOND, 5)
    handle, _ = written(backend, (*FIRST[:10], *range(700, 720)), 5)
    assert handle.cached_tokens == 0


def test_a_state_that_the_shelf_holds_is_saved_to_disk(backend: LlamaCppBackend, tmp_path: Path) -> None:
    written(backend, FIRST, 20)
    written(backend, SECOND, 5)
    assert backend.save_state(FIRST, tmp_path / "state", "model", 10**9).tokens == len(FIRST)


def test_a_damaged_state_is_dropped_and_the_prompt_read_anew(
    backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, wanted = written(backend, FIRST, 5)
    written(backend, SECOND, 5)
    monkeypatch.setattr(backend._cache.shelf, "copy_into", lambda sequence, shelved: False)
    handle, found = written(backend, FIRST, 5)
    assert handle.cached_tokens == 0
    assert found == wanted


def side_by_side(backend: LlamaCppBackend, prompts: list[tuple[int, ...]], count: int) -> list[list[int]]:
    """Return the greedy tokens that follow prompts which are answered at once."""
    handles = [backend.add(Prompt(ids=ids), Sampling()) for ids in prompts]
    found: dict[int, list[int]] = {handle.id: [] for handle in handles}
    while any(len(tokens) < count for tokens in found.values()):
        for update in backend.step(Control()):
            if isinstance(update, Piece):
                found[update.handle.id] += update.ids
    for handle in handles:
        backend.remove(handle)
    return [tokens[:count] for tokens in found.values()]


PROMPTS = [tuple(range(first, first + 40)) for first in (300, 400, 500)]


def test_what_is_packed_goes_on_token_for_token(backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = side_by_side(backend, PROMPTS, 40)
    emptied(backend)
    packed: list[int] = []
    repack = backend._cache.shelf.repack

    def counting(memory: Any, sequences: Sequence[int]) -> Sequence[int] | None:
        packed.append(len(sequences))
        return repack(memory, sequences)

    monkeypatch.setattr("slm_local.backends.llamacpp.sequences.PACK_STEPS", 8)
    monkeypatch.setattr(backend._cache.shelf, "repack", counting)
    assert side_by_side(backend, PROMPTS, 40) == wanted
    assert packed == [3, 3, 3, 3]


def test_what_does_not_come_back_from_packing_is_read_anew(
    backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = side_by_side(backend, PROMPTS, 40)
    emptied(backend)
    monkeypatch.setattr("slm_local.backends.llamacpp.sequences.PACK_STEPS", 30)
    monkeypatch.setattr(backend._cache.shelf, "repack", lambda memory, sequences: sequences[1:2])
    assert side_by_side(backend, PROMPTS, 40) == wanted


def test_what_sequences_share_is_not_copied_to_each(backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_local.backends.llamacpp.sequences.PACK_STEPS", 8)
    monkeypatch.setattr(backend._cache.shelf, "repack", lambda memory, sequences: pytest.fail("it was packed"))
    side_by_side(backend, [(*FIRST, last) for last in (410, 411, 412)], 20)
