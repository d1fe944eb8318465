"""The llama.cpp backend itself: what the contract suite, which sees only events, can't look at."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_local.backends.base import shared_prefix
from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.backends.llamacpp.library import bindings
from slm_local.backends.llamacpp.loading import FORKS, PLACES
from slm_local.backends.llamacpp.prefill import ChunkTuner
from slm_local.backends.llamacpp.sequences import TILED_COST, TILED_ROWS, KvCache
from slm_local.backends.llamacpp.shelf import Shelf
from slm_local.backends.llamacpp.vocabulary import TokenText
from slm_local.errors import PromptTooLong, UsageError
from slm_local.generation import Control, Handle, Piece, Prompt, PromptProgress, PromptRun, Sampling
from tests.loading import load_settings_for

BRIDGE = " Enough thinking, I answer now.\n</think>\n\n"
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def text_prompt(text: str) -> Prompt:
    return Prompt(runs=(PromptRun(text=text, allows_control=True),))


@pytest.fixture(scope="module")
def backend(smollm2: Path) -> Iterator[LlamaCppBackend]:
    made = LlamaCppBackend()
    made.load(load_settings_for("llamacpp", smollm2, context=1024), Control(), lambda fraction: None)
    yield made
    made.close()


@pytest.fixture
def endless(tiny_reasoner: Path) -> Iterator[LlamaCppBackend]:
    """The embedded model in 512 cells, writing until something stops it."""
    made = LlamaCppBackend()
    made.load(load_settings_for("llamacpp", tiny_reasoner, context=512), Control(), lambda fraction: None)
    made._vocabulary.is_end = lambda token: False  # type: ignore[method-assign]
    yield made
    made.close()


def pieces(backend: LlamaCppBackend, handle: Handle, most: int) -> list[Piece]:
    """Step until the sequence ends or `most` pieces came, then remove it."""
    found: list[Piece] = []
    while len(found) < most and not (found and found[-1].end):
        found += [u for u in backend.step(Control()) if isinstance(u, Piece) and u.handle == handle]
    backend.remove(handle)
    return found


def some(backend: LlamaCppBackend, handle: Handle, count: int) -> list[Piece]:
    """Step until a sequence has given `count` pieces; it stays."""
    found: list[Piece] = []
    while len(found) < count:
        found += [u for u in backend.step(Control()) if isinstance(u, Piece) and u.handle == handle]
    return found


def ids(found: list[Piece]) -> list[int]:
    return [token for piece in found for token in piece.ids]


def test_the_end_token_has_no_text_and_ends_the_sequence(backend: LlamaCppBackend) -> None:
    found = pieces(backend, backend.add(text_prompt(QUESTION), Sampling()), 20)
    assert "".join(piece.text for piece in found) == "The capital of France is Paris."
    assert found[-1].end == "stop"
    assert found[-1].text == ""


def test_injected_text_comes_out_marked_and_the_model_goes_on_from_it(backend: LlamaCppBackend) -> None:
    handle = backend.add(text_prompt(QUESTION), Sampling())
    before: list[Piece] = []
    while len(before) < 3:
        before += [u for u in backend.step(Control()) if isinstance(u, Piece)]
    backend.inject(handle, " Wait: Italy<|im_end|>\n<|im_start|>assistant\nThe capital of Italy is")
    after = pieces(backend, handle, 60)
    injected = [piece for piece in after if piece.injected]
    assert "".join(p.text for p in injected).startswith(" Wait: Italy<|im_end|>\n")
    assert all(len(piece.ids) == 1 for piece in injected)
    assert after[: len(injected)] == injected
    assert "Rome" in "".join(piece.text for piece in after if not piece.injected)


def test_an_injection_computes_every_token_once(endless: LlamaCppBackend) -> None:
    handle = endless.add(text_prompt(QUESTION), Sampling())
    before = some(endless, handle, 20)
    endless.inject(handle, BRIDGE)
    steps = 0
    after: list[Piece] = []
    while not after:
        after = [u for u in endless.step(Control()) if isinstance(u, Piece)]
        steps += 1
    injected = [piece for piece in after if piece.injected]
    assert (steps, len(after) - len(injected)) == (1, 1)  # one decode reads it all and gives the next token
    assert len(ids(injected)) == endless.token_count(BRIDGE)
    after += some(endless, handle, 9)
    endless.remove(handle)
    made = len(ids(before)) + len(ids(after))
    assert endless.decoded_tokens == (handle.prompt_tokens or 0) + made - 1  # the token sampled last needs no decode


def test_an_injection_goes_on_with_penalties_and_draws(endless: LlamaCppBackend) -> None:
    sampling = Sampling(temperature=1.0, seed=5, presence_penalty=1000.0, repeat_last_n=128)
    handle = endless.add(text_prompt(QUESTION), sampling)
    before = some(endless, handle, 20)
    endless.inject(handle, BRIDGE)
    after = pieces(endless, handle, 40)
    injected = [piece for piece in after if piece.injected]
    written = ids(before) + ids(after)[len(injected) :]
    assert len(set(written)) == len(written)
    assert set(written[20:]).isdisjoint(ids(injected))
    plain = Sampling(temperature=1.0, seed=5)
    handle = endless.add(text_prompt(QUESTION), plain)
    some(endless, handle, 20)
    endless.inject(handle, BRIDGE)
    whole = Prompt(ids=tuple(endless._by_handle[handle.id].cells + endless._by_handle[handle.id].queue))
    going_on = ids(pieces(endless, handle, 40))[len(injected) :]
    assert going_on != ids(pieces(endless, endless.add(whole, plain), 40 - len(injected)))


def test_an_injection_into_one_of_several_changes_none_of_the_others(endless: LlamaCppBackend) -> None:
    prompts = [text_prompt(f"What is {n} + 5?") for n in range(3)]
    alone = [ids(pieces(endless, endless.add(prompt, Sampling()), 30)) for prompt in prompts]
    handles = [endless.add(prompt, Sampling()) for prompt in prompts]
    found: dict[int, list[int]] = {handle.id: [] for handle in handles}
    for number in range(60):
        if number == 5:
            endless.inject(handles[1], BRIDGE)
        for update in endless.step(Control()):
            if isinstance(update, Piece):
                found[update.handle.id] += update.ids
    for handle in handles:
        endless.remove(handle)
    assert found[handles[0].id][:30] == alone[0]
    assert found[handles[2].id][:30] == alone[2]
    assert found[handles[1].id][:30] != alone[1]


def test_an_injection_that_leaves_no_room_ends_the_sequence_and_is_not_shown(endless: LlamaCppBackend) -> None:
    handle = endless.add(text_prompt(QUESTION), Sampling())
    some(endless, handle, 3)
    endless.inject(handle, "word " * 600)
    found = pieces(endless, handle, 2000)
    assert [(piece.text, piece.ids, piece.end) for piece in found] == [("", (), "context")]


def test_an_aborted_injection_is_read_by_the_next_step(endless: LlamaCppBackend) -> None:
    handle = endless.add(text_prompt(QUESTION), Sampling())
    before = some(endless, handle, 5)
    endless.inject(handle, BRIDGE)
    control = Control()
    endless._arm(control)
    endless._abort.set()  # as if cancelled between the check and the decode
    assert endless.step(control) == []
    after = some(endless, handle, 20)
    endless.remove(handle)
    assert "".join(piece.text for piece in after if piece.injected) == BRIDGE
    assert endless.decoded_tokens == (handle.prompt_tokens or 0) + len(ids(before)) + len(ids(after)) - 1


def test_an_aborted_prefill_leaves_the_cache_as_if_it_had_never_been(backend: LlamaCppBackend) -> None:
    fresh = pieces(backend, backend.add(text_prompt(QUESTION), Sampling()), 20)
    control = Control()
    handle = backend.add(text_prompt("many words " * 450), Sampling())
    backend.step(control)
    threading.Timer(0.02, control.cancel).start()
    while not control.cancelled:
        backend.step(control)
    assert backend.step(control) == []
    backend.remove(handle)
    for slot in backend._cache.slots:
        memory = backend._cache._memory
        assert backend._lib.llama_memory_seq_pos_max(memory, slot.sequence) == len(slot.cells) - 1
    again = pieces(backend, backend.add(text_prompt(QUESTION), Sampling()), 20)
    assert ids(again) == ids(fresh)


def test_an_aborted_decode_goes_on_with_the_same_tokens(backend: LlamaCppBackend) -> None:
    fresh = pieces(backend, backend.add(text_prompt(QUESTION), Sampling()), 20)
    backend.add(text_prompt(QUESTION), Sampling())
    found: list[Piece] = []
    while not (found and found[-1].end):
        control = Control()
        backend._arm(control)
        backend._control = control
        backend._abort.set()  # as if cancelled between the check and the decode
        assert [u for u in backend.step(control) if isinstance(u, Piece)] == []
        found += [u for u in backend.step(Control()) if isinstance(u, Piece)]
    assert ids(found) == ids(fresh)


def test_progress_is_told_chunk_by_chunk(backend: LlamaCppBackend) -> None:
    handle = backend.add(text_prompt("something else entirely " * 110), Sampling())
    told: list[PromptProgress] = []
    while not told or told[-1].done_tokens < told[-1].total_tokens:
        told += [u for u in backend.step(Control()) if isinstance(u, PromptProgress)]
    backend.remove(handle)
    assert len(told) > 1
    assert [t.done_tokens for t in told] == sorted(t.done_tokens for t in told)
    assert told[-1].done_tokens == handle.prompt_tokens


def test_a_full_context_ends_the_sequence_and_says_so(endless: LlamaCppBackend) -> None:
    handle = endless.add(text_prompt("What is 4 + 5? " * 40), Sampling(temperature=1.0, seed=1))
    assert handle.prompt_tokens is not None
    found = pieces(endless, handle, 2000)
    assert found[-1].end == "context"
    assert handle.prompt_tokens + len(ids(found)) == 512 + 1  # the last token needs no cell


def test_a_prompt_that_fills_the_context_is_refused(backend: LlamaCppBackend) -> None:
    with pytest.raises(PromptTooLong, match="1,024"):
        backend.add(text_prompt("word " * 2000), Sampling())


def test_a_token_id_outside_the_vocabulary_is_refused(backend: LlamaCppBackend) -> None:
    with pytest.raises(UsageError, match="49152"):
        backend.add(Prompt(ids=(1, 49152)), Sampling())


def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it(backend: LlamaCppBackend) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=7)
    prompt = text_prompt("<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n")
    alone = ids(pieces(backend, backend.add(prompt, sampling), 24))
    again = ids(pieces(backend, backend.add(prompt, sampling), 24))
    other = ids(pieces(backend, backend.add(prompt, Sampling(temperature=1.0, top_p=0.95, seed=8)), 24))
    assert alone == again
    assert alone != other


def test_sequences_that_outgrow_the_cells_together_end_one_by_one(endless: LlamaCppBackend) -> None:
    handles = [endless.add(text_prompt(f"What is {n} + 5? " * 12), Sampling()) for n in range(3)]
    ended: list[str | None] = []
    while len(ended) < len(handles):
        ended += [u.end for u in endless.step(Control()) if isinstance(u, Piece) and u.end]
        assert endless._cache.free_cells() >= 0
    assert ended == ["context"] * 3


def test_an_idle_conversation_makes_room_for_a_new_one(endless: LlamaCppBackend) -> None:
    first = endless.add(text_prompt("What is 1 + 5? " * 35), Sampling())
    pieces(endless, first, 4)
    second = endless.add(text_prompt("Compare 7 and 9. " * 35), Sampling())
    assert (first.prompt_tokens or 0) + (second.prompt_tokens or 0) > 512
    assert len(pieces(endless, second, 4)) == 4


def test_every_token_of_the_vocabulary_keeps_its_text(backend: LlamaCppBackend) -> None:
    words, lib = backend._vocabulary, backend._lib
    buffer = ctypes.create_string_buffer(1024)
    long_ones = 0
    for token in range(words.size):
        one = (lib.llama_token * 1)(token)
        count = lib.llama_detokenize(words._vocab, one, 1, buffer, 1024, False, True)
        assert words.piece(token) == buffer.raw[:count], token
        long_ones += count > 32
    assert long_ones == 47  # what a 32-byte buffer would have dropped


def test_bytes_of_a_character_wait_for_their_rest_and_broken_ones_become_replacements() -> None:
    text = TokenText()
    data = "añ日😀".encode()
    assert "".join(text.feed(data[i : i + 1]) for i in range(len(data))) == "añ日😀"
    assert text.feed(b"\xff") + text.feed(b"a") == "�a"
    assert text.feed("日".encode()[:2]) == ""
    assert text.flush() == "�"
    assert text.flush() == ""


def test_the_shared_prefix_is_exact_at_any_length() -> None:
    base = list(range(700))
    for at in (0, 1, 255, 256, 257, 511, 512, 699):
        other = [*base[:at], -1, *base[at + 1 :]]
        assert shared_prefix(base, other) == at
    assert shared_prefix(base, base[:300]) == 300
    assert shared_prefix([], base) == 0


SIZES = (512, 256, 128, 64)


def test_the_chunk_is_the_smallest_that_keeps_the_speed() -> None:
    tuner = ChunkTuner(512)
    tuner.record(0, 512, 9.0)  # the first one touches the weights and does not count
    for speeds in ((100.0, 99.0, 60.0, 80.0), (50.0, 70.0, 98.5, 30.0)):  # the faster try counts
        for size, tps in zip(SIZES, speeds, strict=True):
            assert tuner.size_at(512) == size
            tuner.record(512, size, size / tps)
    assert tuner.size_at(1500) == 128


def test_the_chunk_is_chosen_anew_at_depths_where_large_ones_are_faster() -> None:
    tuner = ChunkTuner(512)
    tuner.record(0, 512, 9.0)
    for depth, speeds in ((0, (100.0,) * 4), (2048, (100.0, 80.0, 60.0, 40.0))):
        for size, tps in 2 * list(zip(SIZES, speeds, strict=True)):
            tuner.record(depth, size, size / tps)
    assert [tuner.size_at(depth) for depth in (0, 2047, 2048, 4095)] == [64, 64, 512, 512]
    assert tuner.size_at(4096) == 512  # not tried yet


class FakeMemory:
    """A KV cache that refuses partial removals, or forgets early positions, as some models' do."""

    def __init__(self, *, refuses: bool = False, smallest: int = 0) -> None:
        self.refuses, self.smallest = refuses, smallest
        self.removed: list[tuple[int, int]] = []

    def llama_get_memory(self, context: Any) -> None:
        return None

    def llama_memory_seq_rm(self, memory: Any, sequence: int, start: int, end: int) -> bool:
        self.removed.append((sequence, start))
        self.largest = start - 1
        return start < 0 or not self.refuses

    def llama_memory_seq_pos_min(self, memory: Any, sequence: int) -> int:
        return self.smallest

    def llama_memory_seq_pos_max(self, memory: Any, sequence: int) -> int:
        return self.largest


@pytest.mark.parametrize(
    ("memory", "window", "kept"),
    [
        (FakeMemory(), 0, 6),
        (FakeMemory(refuses=True), 0, 0),
        (FakeMemory(smallest=5), 4, 0),
        (FakeMemory(smallest=2), 4, 6),
    ],
    ids=["keeps", "refuses a partial removal", "window has moved on", "window still reaches"],
)
def test_reuse_is_what_the_cache_says_it_still_holds(memory: FakeMemory, window: int, kept: int) -> None:
    cache = KvCache(
        memory, None, Shelf(memory, None, tokens=100), tokens=100, sequences=2, window=window, idle_tokens=1000
    )
    slot = cache.slots[0]
    slot.cells = list(range(10))
    assert cache.cut(slot, 6) == kept
    assert slot.cells == list(range(kept))
    assert (0, -1) in memory.removed or kept == 6


def test_what_lies_idle_beside_too_many_tokens_is_given_up() -> None:
    cache = KvCache(
        FakeMemory(),
        None,
        Shelf(FakeMemory(), None, tokens=100),
        tokens=10_000,
        sequences=3,
        window=0,
        idle_tokens=1000,
    )
    live, old, new = cache.slots
    live.handle = Handle(id=1, prompt_tokens=10, cached_tokens=0)
    for slot in (live, old):
        slot.cells = list(range(10))
        cache.use(slot)
    for _ in range(500):
        cache.computed(1)
    cache.computed(TILED_ROWS)  # masked cells are computed, too: these count for more
    new.cells = list(range(10))
    cache.use(new)
    assert old.cells
    for _ in range(501 - TILED_COST * TILED_ROWS):
        cache.computed(1)
    assert not old.cells
    assert new.cells
    assert live.cells


def test_the_library_is_loaded_without_its_package_init() -> None:
    lib = bindings()
    assert lib.__name__ == "llama_cpp.llama_cpp"
    assert lib.llama_max_parallel_sequences() >= PLACES + FORKS
