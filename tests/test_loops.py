"""The loop guard: what may repeat itself and what may not, in three ways of cutting a text into tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slm_local.governor import LOOP_TOKENS_ANSWER, LOOP_TOKENS_THINKING
from slm_local.governor.loops import LONGEST_PERIOD, PLACES, LoopGuard
from slm_local.tiny import teacher
from slm_local.tiny.heldout import FAMILIES, draw_trials
from tests.loop_texts import CAUGHT, PASSING, START

Cutter = Callable[[str], list[str]]

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama.cpp")


def vocabulary_of(path: Path) -> Iterator[Cutter]:
    """Yield a cutter by the vocabulary of a GGUF file, its weights not loaded."""
    from slm_local.backends.llamacpp.library import bindings, quiet_log
    from slm_local.backends.llamacpp.vocabulary import TokenText, Vocabulary

    library = bindings()
    quiet_log(library)
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    known = Vocabulary(library, model)

    def cut(text: str) -> list[str]:
        shown = TokenText()
        return [shown.feed(known.piece(token)) for token in known.tokenize(text, parse_control=False)]

    yield cut
    library.llama_model_free(model)


@pytest.fixture(scope="module")
def smollm2_cutter(smollm2: Path) -> Iterator[Cutter]:
    yield from vocabulary_of(smollm2)


@pytest.fixture(scope="module")
def tiny_cutter(tiny_reasoner: Path) -> Iterator[Cutter]:
    yield from vocabulary_of(tiny_reasoner)


def fed_until_found(guard: LoopGuard, tokens: list[str]) -> int | None:
    """Return how many tokens it took to find a loop; None: there was none."""
    for count, token in enumerate(tokens, 1):
        guard.feed(token)
        if guard.is_found:
            return count
    return None


def test_there_are_enough_texts_of_both_kinds() -> None:
    assert len(PASSING) >= 40
    assert len(CAUGHT) >= 40


@needs_llama_cpp
@pytest.mark.parametrize("name", PASSING)
def test_nothing_is_stopped_that_repeats_itself_with_reason(name: str, smollm2_cutter: Cutter) -> None:
    for text in (PASSING[name], START + PASSING[name] + START):
        assert fed_until_found(LoopGuard(LOOP_TOKENS_THINKING), smollm2_cutter(text)) is None


@needs_llama_cpp
@pytest.mark.parametrize("enough", [LOOP_TOKENS_THINKING, LOOP_TOKENS_ANSWER])
@pytest.mark.parametrize("name", CAUGHT)
def test_a_loop_is_found(name: str, enough: int, smollm2_cutter: Cutter, tiny_cutter: Cutter) -> None:
    for cutter in (smollm2_cutter, tiny_cutter):
        found = fed_until_found(LoopGuard(enough), cutter(CAUGHT[name]))
        assert found is not None
        assert found > enough


@needs_llama_cpp
def test_the_embedded_reasoners_thoughts_are_no_loops(tiny_cutter: Cutter) -> None:
    for trial in (trial for family in FAMILIES for trial in draw_trials(family, 20, seed=3)):
        thought = tiny_cutter(teacher.trace(trial.problem))
        assert fed_until_found(LoopGuard(LOOP_TOKENS_THINKING), thought) is None


def found_in_chunks(text: str, size: int) -> bool:
    guard = LoopGuard(LOOP_TOKENS_THINKING)
    for at in range(0, len(text), size):
        guard.feed(text[at : at + size], is_token=False)
    return guard.is_found


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("name", PASSING)
def test_no_text_without_ids_is_stopped_either(name: str, size: int) -> None:
    assert not found_in_chunks(START + PASSING[name] + START, size)


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("name", CAUGHT)
def test_a_loop_without_ids_is_found_by_its_words_however_it_comes(name: str, size: int) -> None:
    assert found_in_chunks(CAUGHT[name], size)


@pytest.mark.parametrize("period", [1, 2, 7, 8, 9, 31, 64, 200, LONGEST_PERIOD])
def test_a_loop_of_any_period_is_found_at_three_periods_and_enough_tokens(period: int) -> None:
    tokens = [f" w{n}" for n in range(40)] + [f" p{chr(0x4E00 + n % period)}" for n in range(4000)]
    found = fed_until_found(LoopGuard(LOOP_TOKENS_THINKING), tokens)
    assert found == 40 + period + max(2 * period, LOOP_TOKENS_THINKING)


def test_a_longer_period_is_not_looked_for() -> None:
    tokens = [f" p{chr(0x4E00 + n % (LONGEST_PERIOD + 1))}" for n in range(4000)]
    assert fed_until_found(LoopGuard(LOOP_TOKENS_THINKING), tokens) is None


def test_what_counts_on_is_found_at_eight_periods() -> None:
    sentence = [f" word{letter}" for letter in "abcdefghijklmnopqrst"]
    tokens = [token for n in range(40) for token in (f" {n}", *sentence)]
    found = fed_until_found(LoopGuard(LOOP_TOKENS_THINKING), tokens)
    assert found is not None
    assert 7 * 21 < found <= 8 * 21 + 1


def test_rows_of_two_numbers_that_change_are_data() -> None:
    tokens = [token for n in range(300) for token in ("the ", "square ", "of ", f"{n} ", "is ", f"{n * n}", "\n")]
    assert fed_until_found(LoopGuard(LOOP_TOKENS_THINKING), tokens) is None
    endless = [token for n in range(300) for token in ("the ", "square ", "of ", f"{n} ", "is ", "big", "\n")]
    assert fed_until_found(LoopGuard(LOOP_TOKENS_THINKING), endless) is not None


def test_it_keeps_no_more_than_it_looks_at() -> None:
    guard = LoopGuard(LOOP_TOKENS_THINKING)
    fed_until_found(guard, [f"w{n * n}" for n in range(20_000)])
    assert len(guard._exact._places) <= PLACES
