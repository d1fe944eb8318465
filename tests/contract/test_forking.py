"""What every backend promises about `fork`, and about prompts that begin alike: what is said, counted, left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.backends import backend_named
from slm_local.backends.base import Backend
from slm_local.backends.scripted import ScriptedBackend
from slm_local.errors import PromptTooLong
from slm_local.generation import Control, Handle, Piece, Prompt, PromptProgress, PromptRun, Sampling, Update
from tests.loading import THINK_TAGS, load_settings_for

TEXT = " I answer now.\n</think>\n\n"
QUESTION = "<｜begin▁of▁sentence｜><｜User｜>What is 47 + 38?<｜Assistant｜><think>\n"
WORDS = [f"word{number} " for number in range(60)]
SCRIPT = "\n".join([*(f'{{"text": "{word}"}}' for word in [*WORDS, "</think>", *WORDS]), '{"end": "stop"}\n'])


@pytest.fixture(scope="module", params=["scripted", "llamacpp", "openvino"])
def backend(
    request: pytest.FixtureRequest, tiny_reasoner: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Return the embedded model, or a script, in 512 tokens and read in small chunks."""
    folder = tmp_path_factory.mktemp("forking")
    script = folder / "script.jsonl"
    script.write_text(SCRIPT, encoding="utf-8")
    is_real = request.param != "scripted"
    settings = load_settings_for(
        request.param, tiny_reasoner if is_real else script, context=512 if is_real else 16_384, tags=THINK_TAGS
    )
    made = backend_named(request.param)
    made.load(replace(settings, batch_tokens=64, cache_dir=str(folder)), Control(), lambda fraction: None)
    yield made
    made.close()


def add(backend: Backend, text: str) -> Handle:
    return backend.add(Prompt(runs=(PromptRun(text=text, allows_control=True),)), Sampling())


def fork(backend: Backend, handle: Handle, text: str = "") -> Handle:
    found = backend.fork(handle, text, Sampling())
    assert found is not None
    return found


def heard(backend: Backend, handles: list[Handle], most: int) -> list[list[Update]]:
    """Step until each has ended or given `most` pieces that the model wrote; some may have given more."""
    found: dict[int, list[Update]] = {handle.id: [] for handle in handles}
    while not all(is_done(updates, most) for updates in found.values()):
        for update in backend.step(Control()):
            assert update.handle is not None
            found[update.handle.id].append(update)
    return list(found.values())


def is_done(updates: list[Update], most: int) -> bool:
    return len(written(updates)) >= most or any(piece.end for piece in pieces(updates))


def pieces(updates: list[Update]) -> list[Piece]:
    return [update for update in updates if isinstance(update, Piece)]


def written(updates: list[Update]) -> list[Piece]:
    return [piece for piece in pieces(updates) if not piece.injected]


def said(updates: list[Update]) -> list[tuple[str, tuple[int, ...]]]:
    return [(piece.text, piece.ids) for piece in written(updates)]


def alone(backend: Backend, most: int) -> list[tuple[str, tuple[int, ...]]]:
    handle = add(backend, QUESTION)
    (found,) = heard(backend, [handle], most)
    backend.remove(handle)
    return said(found)


def test_a_fork_goes_on_as_the_original_would(backend: Backend) -> None:
    whole = alone(backend, 18)
    original = add(backend, QUESTION)
    heard(backend, [original], 10)
    branch = fork(backend, original)
    backend.remove(original)
    (found,) = heard(backend, [branch], 8)
    backend.remove(branch)
    if isinstance(backend, ScriptedBackend):
        assert [text for text, _ids in said(found)] == WORDS[10:18]
    else:
        assert said(found) == whole[10:]
    assert branch.prompt_tokens == (original.prompt_tokens or 0) + 10


def test_a_fork_with_text_says_what_an_injection_makes_a_second_run_say(backend: Backend) -> None:
    second = add(backend, QUESTION)
    heard(backend, [second], 6)
    backend.inject(second, TEXT)
    (expected,) = heard(backend, [second], 8)
    backend.remove(second)
    original = add(backend, QUESTION)
    heard(backend, [original], 6)
    branch = fork(backend, original, TEXT)
    found = heard(backend, [original, branch], 8)[1]
    backend.remove(branch)
    backend.remove(original)
    assert said(found)[:8] == said(expected)
    assert not any(piece.injected for piece in pieces(found))
    assert branch.prompt_tokens == (original.prompt_tokens or 0) + 6 + backend.token_count(TEXT)


def test_the_original_says_the_same_with_forks_beside_it(backend: Backend) -> None:
    whole = alone(backend, 30)
    original = add(backend, QUESTION)
    texts = said(heard(backend, [original], 5)[0])
    branches = [fork(backend, original, text) for text in ("", TEXT, "Wait")]
    texts += said(heard(backend, [original, *branches], 10)[0])
    for branch in branches:
        backend.remove(branch)
    texts += said(heard(backend, [original], 3)[0])
    backend.remove(original)
    assert len(texts) > 17
    assert texts == whole[: len(texts)]


def test_a_fork_reports_its_prompt_before_its_first_piece(backend: Backend) -> None:
    original = add(backend, QUESTION)
    heard(backend, [original], 4)
    branch = fork(backend, original, TEXT)
    updates = heard(backend, [original, branch], 3)[1]
    backend.remove(branch)
    backend.remove(original)
    told = [update for update in updates if isinstance(update, PromptProgress)]
    assert updates[: len(told)] == told
    assert told[-1].done_tokens == told[-1].total_tokens == branch.prompt_tokens


def test_forks_take_no_place_of_a_request_and_have_an_end(backend: Backend) -> None:
    original = add(backend, QUESTION)
    heard(backend, [original], 2)
    branches = []
    while (branch := backend.fork(original, "", Sampling())) is not None:
        branches.append(branch)
    others = [add(backend, f"{number} {QUESTION}") for number in range(backend.max_sequences - 1)]
    found = heard(backend, [original, *branches, *others], 1)
    assert all(pieces(updates) for updates in found)
    for handle in (original, *branches, *others):
        backend.remove(handle)
    assert branches
    again = add(backend, QUESTION)
    heard(backend, [again], 1)
    backend.remove(fork(backend, again))
    backend.remove(again)


def test_a_fork_too_long_for_the_context_is_refused_and_the_original_goes_on(backend: Backend) -> None:
    whole = alone(backend, 6)
    original = add(backend, QUESTION)
    texts = said(heard(backend, [original], 3)[0])
    with pytest.raises(PromptTooLong):
        backend.fork(original, "word " * 4000, Sampling())
    texts += said(heard(backend, [original], 3)[0])
    backend.remove(original)
    assert texts == whole


def test_prompts_alike_that_come_together_are_read_one_after_another(backend: Backend) -> None:
    long = "Is 4 + 5 = 9? " * (14 if not isinstance(backend, ScriptedBackend) else 900)
    handles = [add(backend, f"{QUESTION}{long}") for _ in range(3)]
    found = heard(backend, handles, 2)
    for handle in handles:
        backend.remove(handle)
    told = [[update for update in updates if isinstance(update, PromptProgress)] for updates in found]
    assert len(told[0]) > 2  # it reads chunk by chunk, and the others did not
    assert all(len(others) <= 2 and others[-1].done_tokens == handles[0].prompt_tokens for others in told[1:])
    if not isinstance(backend, ScriptedBackend):
        assert said(found[0])[:2] == said(found[1])[:2] == said(found[2])[:2]


def test_when_the_first_of_prompts_alike_is_removed_the_next_one_reads_on(backend: Backend) -> None:
    long = "Is 7 + 5 = 12? " * (14 if not isinstance(backend, ScriptedBackend) else 900)
    handles = [add(backend, f"{QUESTION}{long}") for _ in range(3)]
    backend.step(Control())
    backend.remove(handles[0])
    found = heard(backend, handles[1:], 2)
    for handle in handles:
        backend.remove(handle)
    told = [update for update in found[0] if isinstance(update, PromptProgress)]
    assert told[-1].done_tokens == handles[1].prompt_tokens
    assert told[-1].handle is not None
    if "cached_tokens" in backend.capabilities:
        assert 0 < (told[-1].handle.cached_tokens or 0) < (handles[1].cached_tokens or 0)  # expected more than it got
    if not isinstance(backend, ScriptedBackend):
        assert said(found[0])[:2] == said(found[1])[:2]


def test_a_fork_says_what_the_script_has_for_it(tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    rows = ['{"text": "a", "fork": ["no"]}', '{"text": "b", "fork": ["8", "5"]}', '{"text": "c"}', '{"text": "d"}']
    path.write_text("\n".join([*rows, '{"end": "stop"}', '{"text": "e"}']), encoding="utf-8")
    backend = ScriptedBackend()
    backend.load(load_settings_for("scripted", path), Control(), lambda fraction: None)
    original = add(backend, "?")
    heard(backend, [original], 2)
    first = fork(backend, original, " So: ")
    found = heard(backend, [original, first], 3)
    backend.remove(first)
    texts = ["".join(text for text, _ids in said(updates)) for updates in found]
    assert texts == ["cd", "85"]
    backend.close()
