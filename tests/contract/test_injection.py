"""What every backend promises about `inject`: order, marks, counts, and that the model goes on from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from slm_local.backends import backend_named
from slm_local.backends.base import Backend
from slm_local.backends.scripted import ScriptedBackend
from slm_local.generation import Control, Handle, Piece, Prompt, PromptProgress, PromptRun, Sampling, Update
from tests.loading import THINK_TAGS, load_settings_for

BRIDGE = " Enough thinking, I answer now.\n</think>\n\n"
QUESTION = "<｜begin▁of▁sentence｜><｜User｜>What is 47 + 38?<｜Assistant｜><think>\n"
LONG = QUESTION + "What is 4 + 5? " * 24
WORDS = [f"word{number} " for number in range(8)]
SCRIPT = "\n".join([*(f'{{"text": "{word}"}}' for word in [*WORDS, "</think>", *WORDS]), '{"end": "stop"}\n'])


@pytest.fixture(scope="module", params=["scripted", "llamacpp", "openvino"])
def backend(
    request: pytest.FixtureRequest, tiny_reasoner: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Return the embedded model, or a script, in 512 tokens and read in small chunks."""
    folder = tmp_path_factory.mktemp("injection")
    script = folder / "script.jsonl"
    script.write_text(SCRIPT, encoding="utf-8")
    is_real = request.param != "scripted"
    settings = load_settings_for(
        request.param, tiny_reasoner if is_real else script, context=512 if is_real else 8192, tags=THINK_TAGS
    )
    made = backend_named(request.param)
    made.load(replace(settings, batch_tokens=64, cache_dir=str(folder)), Control(), lambda fraction: None)
    yield made
    made.close()


@pytest.fixture
def real(backend: Backend) -> Backend:
    if isinstance(backend, ScriptedBackend):
        pytest.skip("a script does not go on from what was injected")
    return backend


def add(backend: Backend, text: str) -> Handle:
    return backend.add(Prompt(runs=(PromptRun(text=text, allows_control=True),)), Sampling())


def heard(backend: Backend, handle: Handle, most: int = 400) -> list[Update]:
    """Step until the sequence ends or has given `most` pieces that the model wrote."""
    found: list[Update] = []
    while len(written(found)) < most and not any(piece.end for piece in pieces(found)):
        found += [update for update in backend.step(Control()) if update.handle == handle]
    return found


def pieces(updates: list[Update]) -> list[Piece]:
    return [update for update in updates if isinstance(update, Piece)]


def written(updates: list[Update]) -> list[Piece]:
    return [piece for piece in pieces(updates) if not piece.injected]


def injected(updates: list[Update]) -> list[Piece]:
    return [piece for piece in pieces(updates) if piece.injected]


def said(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


def ids(found: list[Piece]) -> tuple[int, ...]:
    return tuple(token for piece in found for token in piece.ids)


def test_what_is_injected_comes_next_marked_and_counted_and_the_model_goes_on(backend: Backend) -> None:
    handle = add(backend, QUESTION)
    before = heard(backend, handle, 3)
    backend.inject(handle, BRIDGE)
    after = heard(backend, handle, 4)
    backend.remove(handle)
    marks = [piece.injected for piece in pieces(after)]
    assert marks == sorted(marks, reverse=True)
    assert said(injected(after)) == BRIDGE
    assert len(ids(injected(after))) == backend.token_count(BRIDGE) > 0
    assert injected(before) == []
    assert said(written(after))


def test_greedy_output_after_an_injection_is_that_of_a_fresh_prompt_of_the_same_tokens(real: Backend) -> None:
    handle = real.add(Prompt(ids=(1,)), Sampling())
    real.inject(handle, QUESTION)
    start = heard(real, handle, 12)
    real.inject(handle, BRIDGE)
    end = heard(real, handle)
    real.remove(handle)
    whole = (1, *ids(injected(start)), *ids(written(start)[1:]), *ids(injected(end)))
    anew = add_ids(real, whole)
    assert ids(pieces(heard(real, anew))) == ids(written(end))
    real.remove(anew)
    assert said(written(end)).startswith("The answer is")


def add_ids(backend: Backend, whole: tuple[int, ...]) -> Handle:
    return backend.add(Prompt(ids=whole), Sampling())


def test_a_sequence_that_stopped_goes_on_without_the_token_that_ended_it(backend: Backend) -> None:
    handle = add(backend, QUESTION)
    before = heard(backend, handle)
    assert pieces(before)[-1].end == "stop"
    assert backend.step(Control()) == []
    backend.inject(handle, " And so")
    after = heard(backend, handle, 3)
    backend.remove(handle)
    assert said(injected(after)) == " And so"
    assert pieces(after)[0].injected
    assert written(after)


def test_what_a_model_writes_after_a_nudge_is_what_it_writes_after_the_same_tokens(real: Backend) -> None:
    start = add_ids(real, (1, 5, 9))
    real.inject(start, QUESTION)
    before = heard(real, start)
    real.inject(start, " And so")
    after = heard(real, start, 8)
    real.remove(start)
    whole = (1, 5, 9, *ids(injected(before)), *ids(written(before)[:-1]), *ids(injected(after)))
    anew = add_ids(real, whole)
    assert ids(written(heard(real, anew, 8))) == ids(written(after))
    real.remove(anew)


@pytest.mark.parametrize("steps", [0, 1])
def test_an_injection_while_the_prompt_is_read_comes_after_it(backend: Backend, steps: int) -> None:
    rest = "x" * 4096 if isinstance(backend, ScriptedBackend) else ""  # what takes it a second step
    handle = add(backend, f"{steps}. {LONG}{rest}")
    early = [update for _ in range(steps) for update in backend.step(Control())]
    assert pieces(early) == []
    backend.inject(handle, BRIDGE)
    found = early + heard(backend, handle, 2)
    backend.remove(handle)
    told = [update for update in found if isinstance(update, PromptProgress)]
    assert len(told) > 1
    assert all(before.done_tokens < after.done_tokens for before, after in pairwise(told))
    assert told[-1].done_tokens == told[-1].total_tokens == handle.prompt_tokens
    assert found[: len(told)] == told
    assert said(pieces(found)[: len(injected(found))]) == BRIDGE


def test_two_injections_come_in_their_order(backend: Backend) -> None:
    handle = add(backend, QUESTION)
    heard(backend, handle, 2)
    backend.inject(handle, "One, ")
    backend.inject(handle, "two.")
    after = heard(backend, handle, 2)
    backend.remove(handle)
    assert said(pieces(after)).startswith("One, two.")
    assert len(ids(injected(after))) == backend.token_count("One, ") + backend.token_count("two.")


def test_a_sequence_removed_after_an_injection_gives_nothing_and_the_next_prompt_answers_as_ever(
    backend: Backend,
) -> None:
    handle = add(backend, QUESTION)
    fresh = said(pieces(heard(backend, handle)))
    backend.remove(handle)
    handle = add(backend, QUESTION)
    heard(backend, handle, 5)
    backend.inject(handle, BRIDGE)
    control = Control()
    control.cancel()
    assert backend.step(control) == []
    backend.remove(handle)
    assert backend.step(Control()) == []
    again = add(backend, QUESTION)
    assert said(pieces(heard(backend, again))) == fresh
    backend.remove(again)


def test_an_unfinished_character_is_shown_as_one_replacement_before_what_is_injected(
    real: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: Any = getattr(real, "_vocabulary", None) or getattr(real, "_words", None)
    handle = add(real, QUESTION)
    heard(real, handle, 3)
    with monkeypatch.context() as patch:
        patch.setattr(words, "piece", lambda token: "日".encode()[:2])
        assert said(pieces(heard(real, handle, 1))) == ""
    real.inject(handle, "ok")
    after = pieces(heard(real, handle, 2))
    real.remove(handle)
    assert (after[0].text, after[0].ids, after[0].injected) == ("�", (), False)
    assert said(after).startswith("�ok")
