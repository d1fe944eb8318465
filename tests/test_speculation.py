"""Guessing tokens ahead on llama.cpp: whatever is guessed, the text and the ledger are those of plain steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.backends.llamacpp.ngrams import NgramIndex
from slm_local.backends.llamacpp.speculation import Source, Speculation
from slm_local.driver import Driver
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    Handle,
    Message,
    Piece,
    Prompt,
    PromptRun,
    Reply,
    Sampling,
    StateMoved,
    ThinkDelta,
)
from tests.loading import THINK_TAGS, load_settings_for

BRIDGE = " Enough thinking, I answer now.\n</think>\n\n"
QUESTION = "<｜begin▁of▁sentence｜><｜User｜>What is 47 + 38?<｜Assistant｜><think>\n"
WRONG = 5
"""A token that the embedded model does not write here."""


class Wide:
    """Has every decode draft as much as there is room for, `rows` in all."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.asked_most: list[int] = []

    def begin(self) -> None:
        pass

    def rows(self, matched: int, most: int) -> int:
        self.asked_most.append(most)
        return min(self._rows, most)

    def stepped(self, rows: int, seconds: float) -> None:
        pass

    def judged(self, matched: int, place: int, *, is_kept: bool) -> None:
        pass


class Recorded:
    """Guesses what was recorded, every `wrong`-th token of it changed (0: none)."""

    def __init__(self, prompt: Sequence[int], recorded: Sequence[int], wrong: int) -> None:
        self._made = 0
        self._recorded = [WRONG if wrong and (at + 1) % wrong == 0 else t for at, t in enumerate(recorded)]

    def add(self, token: int) -> None:
        self._made += 1

    def match(self) -> int:
        return 4 if self._made < len(self._recorded) else 0

    def draft(self, count: int) -> list[int]:
        return self._recorded[self._made : self._made + count]


FATES = {"right": 0, "wrong": 1, "half right": 2, "right for three": 4}
"""How guesses fare, with every how manieth token of them changed."""


@pytest.fixture(scope="module")
def loaded(tiny_reasoner: Path) -> Iterator[LlamaCppBackend]:
    made = LlamaCppBackend()
    settings = replace(load_settings_for("llamacpp", tiny_reasoner, context=512), speculation=True)
    made.load(settings, Control(), lambda fraction: None)
    made._vocabulary.is_end = lambda token: False  # type: ignore[method-assign]
    yield made
    made.close()


@pytest.fixture
def backend(loaded: LlamaCppBackend) -> Iterator[LlamaCppBackend]:
    """The embedded model in 512 cells, writing until something stops it, without drafts until a test makes some."""
    loaded.speculation = None
    yield loaded
    for slot in loaded._cache.slots:
        assert slot.handle is None, "a test left its sequence behind"
        assert slot.ahead == []


def guessing(source_of: Callable[[Sequence[int]], Source], rows: int = 8) -> Speculation:
    return Speculation(source_of, Wide(rows))


def is_off(backend: LlamaCppBackend) -> bool:
    return backend.speculation is None


def text_prompt(text: str = QUESTION) -> Prompt:
    return Prompt(runs=(PromptRun(text=text, allows_control=True),))


def begun(backend: LlamaCppBackend, sampling: Sampling) -> Handle:
    """Add the question; drafts are made for a seed, too, which otherwise says that none are wanted."""
    handle = backend.add(text_prompt(), sampling)
    if backend.speculation is not None:
        backend.speculation.begin(backend._by_handle[handle.id], ())
    return handle


def pieces(backend: LlamaCppBackend, handle: Handle, most: int) -> list[Piece]:
    """Step until the sequence ends or `most` pieces came; each step gives one that the model wrote, at most."""
    found: list[Piece] = []
    while len(found) < most and not (found and found[-1].end):
        given = [u for u in backend.step(Control()) if isinstance(u, Piece)]
        assert sum(not piece.injected for piece in given) <= 1
        found += given
    return found


def ids(found: list[Piece]) -> list[int]:
    return [token for piece in found for token in piece.ids]


def written(backend: LlamaCppBackend, sampling: Sampling, most: int = 120) -> list[int]:
    """Return what the model writes in plain steps."""
    backend.speculation = None
    handle = begun(backend, sampling)
    found = ids(pieces(backend, handle, most))
    backend.remove(handle)
    return found


def held(backend: LlamaCppBackend, handle: Handle) -> tuple[list[int], list[int]]:
    slot = backend._by_handle[handle.id]
    return list(slot.cells), list(slot.queue)


def assert_cache_is_ledger(backend: LlamaCppBackend) -> None:
    for slot in backend._cache.slots:
        largest = backend._lib.llama_memory_seq_pos_max(backend._cache._memory, slot.sequence)
        assert largest == len(slot.cells) + len(slot.ahead) - 1


SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=2.5, top_p=0.98, seed=11),
    "penalties": Sampling(temperature=1.5, seed=3, repeat_penalty=1.3, presence_penalty=0.5, repeat_last_n=32),
    "greedy with penalties": Sampling(repeat_penalty=1.5, frequency_penalty=0.3),
}


@pytest.mark.parametrize("wrong", FATES.values(), ids=FATES.keys())
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_the_text_is_that_of_plain_steps_however_guesses_fare(
    backend: LlamaCppBackend, sampling: Sampling, wrong: int
) -> None:
    plain = written(backend, sampling)
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, wrong))
    handle = begun(backend, sampling)
    found = pieces(backend, handle, 120)
    assert ids(found) == plain
    cells, queue = held(backend, handle)
    assert (cells + queue)[handle.prompt_tokens :] == plain
    backend.remove(handle)
    assert_cache_is_ledger(backend)
    drafted, accepted = sum(p.drafted_tokens for p in found), sum(p.is_accepted for p in found)
    assert drafted > 0
    assert accepted <= drafted
    assert (accepted > 0) == (wrong != 1)


def test_right_guesses_save_decodes_and_wrong_ones_leave_no_trace(backend: LlamaCppBackend) -> None:
    plain = written(backend, Sampling())
    for wrong, most_decodes in ((0, len(plain) // 8 + 3), (1, len(plain) + 1)):
        backend.speculation = guessing(lambda prompt, wrong=wrong: Recorded(prompt, plain, wrong))  # type: ignore[misc]
        handle = backend.add(text_prompt("Not asked before: " + QUESTION), Sampling())
        pieces(backend, handle, 1)
        backend.remove(handle)  # its prompt is read now
        decodes = count_decodes(backend)
        handle = backend.add(text_prompt(), Sampling())
        assert ids(pieces(backend, handle, 120)) == plain
        backend.remove(handle)
        assert decodes() <= most_decodes
        assert_cache_is_ledger(backend)


def count_decodes(backend: LlamaCppBackend) -> Callable[[], int]:
    """Return a function that says how many decodes of one sequence there were since."""
    speculation = backend.speculation
    assert speculation is not None
    assert isinstance(speculation.chooser, Wide)
    chooser = speculation.chooser
    before = len(chooser.asked_most)
    return lambda: len(chooser.asked_most) - before


def test_an_injection_in_mid_burst_follows_what_was_handed_out_and_nothing_else(backend: LlamaCppBackend) -> None:
    for sampling in (Sampling(), Sampling(temperature=2.0, seed=4, repeat_penalty=1.2)):
        plain = written(backend, sampling)
        handle = begun(backend, sampling)
        before = pieces(backend, handle, 11)
        backend.inject(handle, BRIDGE)
        after = ids(pieces(backend, handle, 40))
        cells, queue = held(backend, handle)
        backend.remove(handle)

        backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 0))  # noqa: B023
        handle = begun(backend, sampling)
        assert ids(pieces(backend, handle, 11)) == ids(before)
        slot = backend._by_handle[handle.id]
        assert slot.ahead  # in mid-burst
        backend.inject(handle, BRIDGE)
        assert slot.ahead == []
        assert ids(pieces(backend, handle, 40)) == after
        assert_cache_is_ledger(backend)
        backend._take_back(slot)
        assert held(backend, handle) == (cells, queue)
        backend.remove(handle)


def test_a_sequence_removed_in_mid_burst_leaves_what_was_handed_out_for_the_next_prompt(
    backend: LlamaCppBackend,
) -> None:
    plain = written(backend, Sampling())
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 0))
    handle = backend.add(text_prompt(), Sampling())
    pieces(backend, handle, 11)
    slot = backend._by_handle[handle.id]
    assert slot.ahead
    backend.remove(handle)
    assert_cache_is_ledger(backend)
    assert slot.cells[handle.prompt_tokens :] == plain[:10]
    again = backend.add(Prompt(ids=(*slot.cells, plain[10])), Sampling())
    assert again.cached_tokens == (handle.prompt_tokens or 0) + 10
    assert ids(pieces(backend, again, 10)) == plain[11:21]
    backend.remove(again)


def test_a_cancel_in_mid_burst_keeps_what_was_handed_out_and_the_rest_comes_later(backend: LlamaCppBackend) -> None:
    plain = written(backend, Sampling())
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 0))
    handle = backend.add(text_prompt(), Sampling())
    found = pieces(backend, handle, 11)
    cancelled = Control()
    cancelled.cancel()
    assert backend.step(cancelled) == []
    assert ids(found + pieces(backend, handle, 30)) == plain[:41]
    backend.remove(handle)


def test_an_aborted_decode_with_a_draft_is_done_again(backend: LlamaCppBackend) -> None:
    plain = written(backend, Sampling())
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 0))
    handle = backend.add(text_prompt(), Sampling())
    found = pieces(backend, handle, 1)
    while backend._by_handle[handle.id].ahead:
        found += pieces(backend, handle, 1)
    control = Control()
    backend._arm(control)
    backend._abort.set()  # as if cancelled between the check and the decode
    assert backend.step(control) == []
    assert_cache_is_ledger(backend)
    assert ids(found + pieces(backend, handle, 30)) == plain[: len(found) + 30]
    backend.remove(handle)


def test_nothing_is_guessed_beside_another_sequence_and_a_burst_ends_before_it_is_read(
    backend: LlamaCppBackend,
) -> None:
    plain = written(backend, Sampling())
    other = text_prompt(QUESTION.replace("47", "5"))
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 0))
    first = backend.add(text_prompt(), Sampling())
    found = pieces(backend, first, 3)
    second = backend.add(other, Sampling())
    decodes = count_decodes(backend)
    beside: list[Piece] = []
    while len(found) < 30:
        given = [u for u in backend.step(Control()) if isinstance(u, Piece)]
        found += [piece for piece in given if piece.handle == first]
        beside += [piece for piece in given if piece.handle == second]
    assert decodes() == 0
    assert ids(found) == plain[:30]
    assert len(beside) >= 20
    for handle in (first, second):
        backend.remove(handle)
    assert_cache_is_ledger(backend)


def test_a_fork_in_mid_burst_goes_on_from_what_was_handed_out_and_nothing_is_guessed_for_it(
    backend: LlamaCppBackend,
) -> None:
    plain = written(backend, Sampling())
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 0))
    first = backend.add(text_prompt(), Sampling())
    before = ids(pieces(backend, first, 11))
    assert backend._by_handle[first.id].ahead  # in mid-burst
    second = backend.fork(first, "", Sampling())
    assert second is not None
    assert second.prompt_tokens == (first.prompt_tokens or 0) + 11
    assert backend._by_handle[first.id].ahead == []
    assert_cache_is_ledger(backend)
    backend.remove(first)
    decodes = count_decodes(backend)
    assert ids(pieces(backend, second, 20)) == plain[11:31]
    assert decodes() == 0
    backend.remove(second)
    assert before == plain[:11]


def test_a_prompt_that_is_only_read_gets_no_guesses(backend: LlamaCppBackend) -> None:
    backend.speculation = guessing(NgramIndex)
    decodes = count_decodes(backend)
    handle = backend.add(text_prompt("Only read: " + QUESTION), None)
    while backend._cache.live():
        backend.step(Control())
    assert decodes() == 0
    backend.remove(handle)


def test_a_state_saved_or_restored_in_mid_burst_finds_the_cache_as_the_ledger_says(
    backend: LlamaCppBackend, tmp_path: Path
) -> None:
    plain = written(backend, Sampling())
    kept = backend.token_ids(text_prompt("To be kept: " + QUESTION))
    handle = backend.add(Prompt(ids=tuple(kept)), None)
    while backend._cache.live():
        backend.step(Control())
    backend.remove(handle)
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 0))
    handle = backend.add(text_prompt(), Sampling())
    found: list[Piece] = []
    moves: tuple[Callable[[], StateMoved], ...] = (
        lambda: backend.save_state(kept, tmp_path / "state", "m", 10**9),
        lambda: backend.restore_state(tmp_path / "state", "m"),
    )
    for move in moves:
        found += pieces(backend, handle, 11)
        assert backend._by_handle[handle.id].ahead  # in mid-burst
        assert move().tokens == len(kept)
        assert backend._by_handle[handle.id].ahead == []
        assert_cache_is_ledger(backend)
    assert ids(found + pieces(backend, handle, 20)) == plain[:42]
    backend.remove(handle)


def test_no_draft_outgrows_the_context_which_ends_where_it_does_in_plain_steps(backend: LlamaCppBackend) -> None:
    backend.speculation = guessing(NgramIndex, rows=16)
    handle = backend.add(text_prompt("What is 4 + 5? " * 40), Sampling())
    found = pieces(backend, handle, 600)
    backend.remove(handle)
    assert_cache_is_ledger(backend)
    assert found[-1].end == "context"
    assert (handle.prompt_tokens or 0) + len(ids(found)) == 512 + 1  # the last token needs no cell
    assert sum(piece.is_accepted for piece in found) > 0


def test_a_cache_that_refuses_to_take_tokens_back_costs_a_reading_once_and_ends_drafts(
    backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = written(backend, Sampling())
    backend.speculation = guessing(lambda prompt: Recorded(prompt, plain, 1))
    handle = backend.add(text_prompt(), Sampling())
    monkeypatch.setattr(backend._cache, "_can_keep", lambda slot, keep: False)
    assert ids(pieces(backend, handle, 30)) == plain[:30]
    assert is_off(backend)
    backend.remove(handle)


def test_a_seed_gets_no_drafts(backend: LlamaCppBackend) -> None:
    backend.speculation = guessing(lambda prompt: Recorded(prompt, [WRONG] * 40, 0))
    for sampling, is_drafted in ((Sampling(temperature=1.0, seed=1), False), (Sampling(temperature=1.0), True)):
        handle = backend.add(text_prompt(), sampling)
        assert any(piece.drafted_tokens for piece in pieces(backend, handle, 20)) == is_drafted
        backend.remove(handle)


def test_it_is_off_where_the_settings_say_so(tiny_reasoner: Path) -> None:
    made = LlamaCppBackend()
    made.load(load_settings_for("llamacpp", tiny_reasoner, context=512), Control(), lambda fraction: None)
    assert made.speculation is None
    handle = made.add(text_prompt(), Sampling())
    assert sum(piece.drafted_tokens for piece in pieces(made, handle, 200)) == 0
    made.close()


# ---- through the driver: budgets, stops, counts


@pytest.fixture(scope="module")
def driver(tiny_reasoner: Path) -> Iterator[tuple[Driver, LlamaCppBackend]]:
    backend = LlamaCppBackend()
    made = Driver(backend)
    settings = replace(load_settings_for("llamacpp", tiny_reasoner, tags=THINK_TAGS), speculation=True)
    made.load(settings, Control(), lambda fraction: None)
    yield made, backend
    made.close()


def request(**fields: object) -> GenerationRequest:
    return replace(
        GenerationRequest(messages=(Message(role="user", content="What is 47 + 38?"),), think="on"),
        **fields,  # type: ignore[arg-type]
    )


def both_ways(driver: tuple[Driver, LlamaCppBackend], asked: GenerationRequest) -> tuple[Reply, Reply]:
    """Return a reply in plain steps, and one whose drafts are what a free run of the same prompt wrote."""
    made, backend = driver
    free = [*recorded_ids(made, backend, request()), backend._vocabulary.eos, WRONG, WRONG]
    backend.speculation = None
    plain = last(made, asked)
    backend.speculation = guessing(lambda prompt: Recorded(prompt, free, 0))
    return plain, last(made, asked)


def recorded_ids(made: Driver, backend: LlamaCppBackend, asked: GenerationRequest) -> list[int]:
    found: list[int] = []

    class Listening(Recorded):
        def add(self, token: int) -> None:
            found.append(token)

    backend.speculation = Speculation(lambda prompt: Listening(prompt, (), 0), Wide(1))
    last(made, asked)
    return found


def last(made: Driver, asked: GenerationRequest) -> Reply:
    *_, done = made.run(asked)
    assert isinstance(done, Done)
    return done.reply


@pytest.mark.parametrize("budget", [1, 5, 6, 7, 11])
def test_a_budget_inside_a_burst_is_kept_to_the_token(driver: tuple[Driver, LlamaCppBackend], budget: int) -> None:
    plain, drafted = both_ways(driver, request(think="open", think_tokens=budget))
    usage = drafted.usage
    assert (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0) <= budget
    assert (drafted.thinking, drafted.answer, drafted.cut, drafted.finish) == (
        *(plain.thinking, plain.answer, plain.cut, plain.finish),
    )
    assert drafted.cut == "budget"
    assert usage.accepted_tokens
    assert replace(usage, drafted_tokens=0, accepted_tokens=0, cached_tokens=0) == replace(plain.usage, cached_tokens=0)


@pytest.mark.parametrize("most", [1, 5, 12, 20])
def test_most_tokens_inside_a_burst_are_kept_to_the_token(driver: tuple[Driver, LlamaCppBackend], most: int) -> None:
    plain, drafted = both_ways(driver, request(max_tokens=most))
    assert (drafted.usage.think_tokens or 0) + (drafted.usage.answer_tokens or 0) <= most
    assert (drafted.thinking, drafted.answer, drafted.finish) == (plain.thinking, plain.answer, plain.finish)


def test_a_stop_string_in_mid_burst_ends_the_answer_there(driver: tuple[Driver, LlamaCppBackend]) -> None:
    made, backend = driver
    backend.speculation = None
    answer = last(made, request()).answer
    stop = answer[len(answer) // 2 :][:2]
    plain, drafted = both_ways(driver, request(stop=(stop,)))
    assert drafted.answer == plain.answer == answer[: answer.index(stop)]
    assert drafted.finish == "stop"
    assert drafted.usage.accepted_tokens


def test_the_counts_say_what_was_guessed_and_what_was_right(driver: tuple[Driver, LlamaCppBackend]) -> None:
    plain, drafted = both_ways(driver, request())
    generated = (drafted.usage.think_tokens or 0) + (drafted.usage.answer_tokens or 0)
    assert (plain.usage.drafted_tokens, plain.usage.accepted_tokens) == (0, 0)
    assert (drafted.thinking, drafted.answer) == (plain.thinking, plain.answer)
    assert generated // 2 < (drafted.usage.accepted_tokens or 0) <= (drafted.usage.drafted_tokens or 0)


def test_events_come_a_token_at_a_time(driver: tuple[Driver, LlamaCppBackend]) -> None:
    made, backend = driver
    both_ways(driver, request())
    events = list(made.run(request()))
    counts = [event.tokens for event in events if isinstance(event, ThinkDelta | AnswerDelta)]
    assert len(counts) > 10
    assert backend.speculation is not None
