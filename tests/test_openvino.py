"""The OpenVINO backend on the embedded model: what the contract suite, which sees only events, can't look at."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.backends.llamacpp.vocabulary import TokenText
from slm_local.backends.openvino import vocabulary
from slm_local.backends.openvino.backend import OpenVinoBackend
from slm_local.backends.openvino.library import IDLE_TOKENIZER, check_device, openvino
from slm_local.backends.openvino.vocabulary import GgufWords, IrWords
from slm_local.driver import Driver
from slm_local.errors import EngineMissing, Interrupted, ModelBroken, PromptTooLong, UsageError
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    Handle,
    LoadSettings,
    Message,
    ModelFacts,
    Piece,
    Prompt,
    PromptProgress,
    PromptRun,
    Reply,
    Sampling,
    ThinkControl,
    Update,
)
from slm_local.tiny import heldout
from slm_local.tiny.evaluate import final_of
from tests.command import child_environment
from tests.loading import THINK_TAGS, load_settings_for
from tests.openvino_files import openvino_folder, with_rope

QUESTION = "<｜begin▁of▁sentence｜><｜User｜>What is 47 + 38?<｜Assistant｜><think>\n"
LONG = QUESTION + "What is 4 + 5? " * 24
BRIDGE = " Enough thinking, I answer now.\n</think>\n\n"
ENDLESS = (1, 5, 9)
"""Token ids after which the model writes for long, as long as nothing ends it."""

Loader = Callable[..., OpenVinoBackend]


def text_prompt(text: str) -> Prompt:
    return Prompt(runs=(PromptRun(text=text, allows_control=True),))


def settings_for(path: Path, folder: Path, context: int = 512) -> LoadSettings:
    return replace(load_settings_for("openvino", path, context=context), cache_dir=str(folder))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for compiled models that all tests share."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def load(compiled: Path) -> Iterator[Loader]:
    """Load models that are closed when the test is over."""
    made: list[OpenVinoBackend] = []

    def one(path: Path, *, context: int = 512, **changes: Any) -> OpenVinoBackend:
        backend = OpenVinoBackend()
        backend.load(replace(settings_for(path, compiled, context), **changes), Control(), lambda fraction: None)
        made.append(backend)
        return backend

    yield one
    for backend in made:
        backend.close()


@pytest.fixture(scope="module")
def backend(tiny_reasoner: Path, compiled: Path) -> Iterator[OpenVinoBackend]:
    made = OpenVinoBackend()
    made.load(settings_for(tiny_reasoner, compiled), Control(), lambda fraction: None)
    yield made
    made.close()


@pytest.fixture
def endless(load: Loader, tiny_reasoner: Path) -> OpenVinoBackend:
    """The embedded model in 512 tokens, writing until something stops it."""
    made = load(tiny_reasoner)
    made._ends = frozenset(made._words.tokenize("<｜begin▁of▁sentence｜>", parse_control=True))
    return made


def pieces(backend: Any, handle: Handle, most: int = 400) -> list[Piece]:
    """Step until the sequence ends or `most` pieces came, then remove it."""
    found: list[Piece] = []
    while len(found) < most and not (found and found[-1].end):
        found += [u for u in backend.step(Control()) if isinstance(u, Piece) and u.handle == handle]
    backend.remove(handle)
    return found


def some(backend: OpenVinoBackend, handle: Handle, count: int) -> list[Piece]:
    """Step until a sequence has given `count` pieces; it stays."""
    found: list[Piece] = []
    while len(found) < count:
        found += [u for u in backend.step(Control()) if isinstance(u, Piece) and u.handle == handle]
    return found


def ids(found: list[Piece]) -> list[int]:
    return [token for piece in found for token in piece.ids]


def said(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


# ---- generating


def test_the_end_token_has_no_text_and_ends_the_sequence(backend: OpenVinoBackend) -> None:
    found = pieces(backend, backend.add(text_prompt(QUESTION), Sampling()))
    assert said(found).endswith("85**.")
    assert (found[-1].end, found[-1].text, len(found[-1].ids)) == ("stop", "", 1)


def test_every_token_comes_out_at_once_with_its_own_text(backend: OpenVinoBackend) -> None:
    handle = backend.add(text_prompt(QUESTION), Sampling())
    while not any(isinstance(update, Piece) for update in backend.step(Control())):
        pass
    shown = [[u for u in backend.step(Control()) if isinstance(u, Piece)] for _ in range(10)]
    backend.remove(handle)
    assert [len(step) for step in shown] == [1] * 10
    assert all(len(step[0].ids) == 1 and step[0].text for step in shown)


def test_injected_text_comes_out_marked_and_the_model_goes_on_from_it(backend: OpenVinoBackend) -> None:
    handle = backend.add(text_prompt(QUESTION), Sampling())
    before: list[Piece] = []
    while len(before) < 3:
        before += [u for u in backend.step(Control()) if isinstance(u, Piece)]
    backend.inject(handle, BRIDGE)
    after = pieces(backend, handle)
    injected = [piece for piece in after if piece.injected]
    assert said(injected) == BRIDGE
    assert after[: len(injected)] == injected
    assert all(len(piece.ids) == 1 for piece in injected)
    whole = tuple(backend._words.tokenize(QUESTION, parse_control=True) + ids(before) + ids(injected))
    anew = pieces(backend, backend.add(Prompt(ids=whole), Sampling()))
    assert ids(after[len(injected) :]) == ids(anew)
    assert said(anew).startswith("The answer is")


def test_an_injection_reads_only_what_is_new(endless: OpenVinoBackend) -> None:
    handle = endless.add(text_prompt(LONG), Sampling())
    found: list[Piece] = []
    while len(found) < 10:
        found += [u for u in endless.step(Control()) if isinstance(u, Piece)]
    bridge = len(endless._words.tokenize(BRIDGE, parse_control=True))
    endless.inject(handle, BRIDGE)
    assert endless._feed() == bridge + 1  # the token sampled last was not computed yet
    endless.remove(handle)


def test_after_an_injection_only_the_penalty_of_repetition_knows_what_was_thought(backend: OpenVinoBackend) -> None:
    def after(sampling: Sampling) -> list[int]:
        handle = backend.add(Prompt(ids=tuple(whole)), sampling)
        backend.inject(handle, BRIDGE)
        found = [piece for piece in pieces(backend, handle, 30) if not piece.injected]
        return ids(found[:1])

    whole = backend._words.tokenize(QUESTION + "The answer is The answer is", parse_control=True)
    greedy = after(Sampling())
    assert after(Sampling(presence_penalty=2.0, frequency_penalty=2.0)) == greedy
    assert after(Sampling(repeat_penalty=9.0)) != greedy


def test_an_unfinished_character_before_an_injection_is_shown_as_one_replacement(backend: OpenVinoBackend) -> None:
    handle = backend.add(text_prompt(QUESTION), Sampling())
    backend.step(Control())
    assert backend._live[handle.id].text.feed("é".encode()[:1]) == ""
    backend.inject(handle, "ok")
    first = next(u for u in backend.step(Control()) if isinstance(u, Piece))
    backend.remove(handle)
    assert (first.text, first.ids, first.injected) == ("�", (), False)


def test_a_full_context_ends_the_sequence_and_says_so(endless: OpenVinoBackend) -> None:
    handle = endless.add(text_prompt(LONG), Sampling(temperature=1.0, seed=1))
    found = pieces(endless, handle, 2000)
    assert found[-1].end == "context"
    assert handle.prompt_tokens is not None
    assert handle.prompt_tokens + len(ids(found)) == 512 + 1  # the last token needs no place in the cache


def test_an_injection_that_leaves_no_room_ends_the_sequence_and_is_not_shown(endless: OpenVinoBackend) -> None:
    handle = endless.add(text_prompt(LONG), Sampling())
    some(endless, handle, 3)
    endless.inject(handle, "word " * 300)
    found = pieces(endless, handle, 2000)
    assert [(piece.text, piece.ids, piece.end) for piece in found] == [("", (), "context")]


def test_an_injection_into_one_of_several_changes_none_of_the_others(endless: OpenVinoBackend) -> None:
    prompts = [text_prompt(f"What is {n} + 5?") for n in range(3)]
    alone = [ids(pieces(endless, endless.add(prompt, Sampling()), 30)) for prompt in prompts]
    handles = [endless.add(prompt, Sampling()) for prompt in prompts]
    found: dict[int, list[int]] = {handle.id: [] for handle in handles}
    for number in range(60):
        if number == 8:
            endless.inject(handles[1], BRIDGE)
        for update in endless.step(Control()):
            if isinstance(update, Piece):
                found[update.handle.id] += update.ids
    for handle in handles:
        endless.remove(handle)
    assert found[handles[0].id][:30] == alone[0]
    assert found[handles[2].id][:30] == alone[2]
    assert found[handles[1].id][:30] != alone[1]


def test_whose_thinking_is_ended_is_served_before_a_prompt_that_waits(load: Loader, tiny_reasoner: Path) -> None:
    backend = load(tiny_reasoner, batch_tokens=32)
    waits = backend.add(text_prompt(LONG), Sampling())
    backend.step(Control())
    thinks = backend.add(text_prompt(QUESTION), Sampling())
    backend.inject(thinks, BRIDGE)
    found: list[Update] = []
    while not any(isinstance(update, Piece) for update in found):
        found += backend.step(Control())
    assert {update.handle for update in found} == {thinks}
    backend.remove(waits)
    backend.remove(thinks)


def test_sequences_that_outgrow_the_cache_together_all_come_to_their_end(endless: OpenVinoBackend) -> None:
    handles = [endless.add(text_prompt(LONG + f"What is {n} + 5?"), Sampling()) for n in range(3)]
    counts = {handle.id: handle.prompt_tokens or 0 for handle in handles}
    ended: set[int] = set()
    while len(ended) < len(handles):
        for update in endless.step(Control()):
            if isinstance(update, Piece):
                counts[update.handle.id] += len(update.ids)
                ended |= {update.handle.id} if update.end else set()
    assert all(count <= 512 + 1 for count in counts.values())


def test_a_prompt_that_fills_the_context_is_refused(backend: OpenVinoBackend) -> None:
    with pytest.raises(PromptTooLong, match="512"):
        backend.add(text_prompt("word " * 600), Sampling())


def test_a_token_id_outside_the_vocabulary_is_refused(backend: OpenVinoBackend) -> None:
    with pytest.raises(UsageError, match="768"):
        backend.add(Prompt(ids=(1, 768)), Sampling())


# ---- reading prompts


def progress(backend: OpenVinoBackend, handle: Handle, steps: int = 100) -> list[int]:
    told: list[int] = []
    while steps and (not told or told[-1] < (handle.prompt_tokens or 0)):
        told += [u.done_tokens for u in backend.step(Control()) if isinstance(u, PromptProgress)]
        steps -= 1
    return told


def test_a_long_prompt_is_read_in_chunks_that_are_told_one_by_one(load: Loader, tiny_reasoner: Path) -> None:
    backend = load(tiny_reasoner, batch_tokens=64)
    handle = backend.add(text_prompt(LONG), Sampling())
    told = progress(backend, handle)
    backend.remove(handle)
    assert len(told) > 3
    assert told == sorted(set(told))
    assert told[-1] == handle.prompt_tokens
    assert max(after - before for before, after in zip([0, *told], told, strict=False)) <= 64


def test_a_cancel_in_mid_prompt_comes_back_after_one_chunk_and_what_was_read_is_not_read_again(
    load: Loader, tiny_reasoner: Path
) -> None:
    backend = load(tiny_reasoner, batch_tokens=32)
    handle = backend.add(text_prompt(LONG), Sampling())
    told = progress(backend, handle, steps=3)
    control = Control()
    control.cancel()
    assert backend.step(control) == []
    backend.remove(handle)
    assert told == [32, 64, 96]
    again = backend.add(text_prompt(LONG), Sampling())
    assert progress(backend, again, steps=1) == [128]
    backend.remove(again)
    fresh = load(tiny_reasoner)
    expected = ids(pieces(fresh, fresh.add(text_prompt(LONG), Sampling()), 20))
    assert ids(pieces(backend, backend.add(text_prompt(LONG), Sampling()), 20)) == expected


def test_the_next_turn_reads_only_its_own_tokens(load: Loader, tiny_reasoner: Path) -> None:
    backend = load(tiny_reasoner, batch_tokens=32)
    first = text_prompt(LONG)
    found = pieces(backend, backend.add(first, Sampling()), 12)
    history = backend._words.tokenize(LONG, parse_control=True) + ids(found)
    handle = backend.add(Prompt(ids=(*history, *backend._words.tokenize("And 9 x 7?", parse_control=True))), Sampling())
    assert progress(backend, handle) == [handle.prompt_tokens]
    backend.remove(handle)


def test_eight_requests_and_a_fork_share_the_blocks_of_their_prompt(load: Loader, tiny_reasoner: Path) -> None:
    backend = load(tiny_reasoner, batch_tokens=64)
    backend._ends = frozenset(backend._words.tokenize("<｜begin▁of▁sentence｜>", parse_control=True))
    handles = [backend.add(text_prompt(LONG), Sampling()) for _ in range(8)]
    told: dict[int, list[Piece]] = {handle.id: [] for handle in handles}
    while not all(told.values()):
        for update in backend.step(Control()):
            if isinstance(update, Piece):
                told[update.handle.id].append(update)
    assert [len(found) for found in told.values()] == [2, *[1] * 7]  # the seven begin together, a step later
    fork = backend.fork(handles[0], "", Sampling())
    assert fork is not None
    pieces(backend, fork, 1)
    blocks = backend._pipeline._pipeline.get_metrics().cache_usage / 100 * (512 // 32 + 8 + 4)  # type: ignore[attr-defined]
    shared = (handles[0].prompt_tokens or 0) // 32
    assert shared > 5
    assert round(blocks) <= shared + 9 * 2
    for handle in handles:
        backend.remove(handle)


# ---- sampling


def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it(backend: OpenVinoBackend) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=7)
    alone = ids(pieces(backend, backend.add(Prompt(ids=ENDLESS), sampling), 24))
    other = backend.add(text_prompt(QUESTION), Sampling(temperature=1.5, seed=3))
    beside = ids(pieces(backend, backend.add(Prompt(ids=ENDLESS), sampling), 24))
    backend.remove(other)
    changed = ids(pieces(backend, backend.add(Prompt(ids=ENDLESS), replace(sampling, seed=8)), 24))
    assert alone == beside
    assert alone != changed


def test_no_seed_draws_a_fresh_one(backend: OpenVinoBackend) -> None:
    seeds = set()
    for _ in range(3):
        handle = backend.add(Prompt(ids=ENDLESS), Sampling(temperature=1.0))
        seeds.add(backend._live[handle.id].seed)
        backend.remove(handle)
    assert len(seeds) == 3


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.999}])
def test_each_truncation_at_its_narrowest_leaves_the_likeliest_token(
    backend: OpenVinoBackend, narrow: dict[str, Any]
) -> None:
    greedy = ids(pieces(backend, backend.add(text_prompt(QUESTION), Sampling()), 30))
    sampling = Sampling(temperature=1.5, seed=5, **narrow)
    assert ids(pieces(backend, backend.add(text_prompt(QUESTION), sampling), 30)) == greedy


@pytest.mark.parametrize(
    "penalty", [{"repeat_penalty": 1.9}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}], ids=str
)
def test_each_penalty_reaches_the_sampler(endless: OpenVinoBackend, penalty: dict[str, Any]) -> None:
    sampling = Sampling(temperature=2.0, seed=3)
    plain = ids(pieces(endless, endless.add(Prompt(ids=ENDLESS), sampling), 60))
    punished = ids(pieces(endless, endless.add(Prompt(ids=ENDLESS), replace(sampling, **penalty)), 60))
    assert punished != plain


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        (Sampling(presence_penalty=5.0), "presence_penalty"),
        (Sampling(temperature=1.0, top_p=1.5), "top_p"),
        (Sampling(repeat_penalty=1.2, repeat_last_n=256), "256"),
    ],
    ids=["penalty out of range", "top_p out of range", "a window"],
)
def test_what_openvino_can_not_do_is_refused_and_not_dropped(
    backend: OpenVinoBackend, sampling: Sampling, word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        backend.add(Prompt(ids=ENDLESS), sampling)
    assert backend._live == {}


# ---- tokens


@pytest.fixture(scope="module")
def two_vocabularies(tiny_reasoner: Path) -> tuple[IrWords, GgufWords]:
    return IrWords(IDLE_TOKENIZER, size=768, end_ids=frozenset()), GgufWords(tiny_reasoner)


ASSIGNED = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60)


@given(st.one_of(ASSIGNED, st.text(st.sampled_from("a b'sS\n\t 012.,<|>/think\r x̂日😀"), max_size=60)))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_both_engines_make_the_same_tokens_of_a_text(two_vocabularies: tuple[IrWords, GgufWords], text: str) -> None:
    ours, theirs = two_vocabularies
    assert ours.tokenize(text, parse_control=True) == theirs.tokenize(text, parse_control=True)


def test_both_engines_agree_on_what_the_vocabulary_is(two_vocabularies: tuple[IrWords, GgufWords]) -> None:
    ours, theirs = two_vocabularies
    assert [ours.piece(token) for token in range(768)] == [theirs.piece(token) for token in range(768)]
    assert sorted(ours.control_texts()) == sorted(theirs.control_texts())
    assert ours.end_ids() == theirs.end_ids()
    assert (ours.bos_text, ours.eos_text, ours.adds_bos) == (theirs.bos_text, theirs.eos_text, theirs.adds_bos)


def test_plain_text_never_becomes_a_control_token(two_vocabularies: tuple[IrWords, GgufWords]) -> None:
    ours, _ = two_vocabularies
    text = "a<think></think><｜User｜><<think>>"
    control = {ours.tokenize(each, parse_control=True)[0] for each in ours.control_texts()}
    plain = ours.tokenize(text, parse_control=False)
    assert not control & set(plain)
    assert b"".join(map(ours.piece, plain)).decode() == text
    assert control & set(ours.tokenize(text, parse_control=True))


def test_a_character_in_several_tokens_comes_out_whole(two_vocabularies: tuple[IrWords, GgufWords]) -> None:
    ours, _ = two_vocabularies
    text, decoder = "日本😀 é", TokenText()
    assert "".join(decoder.feed(ours.piece(t)) for t in ours.tokenize(text, parse_control=True)) == text


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"(\<think\>)|(?:\s*)(\<\|im_end\|\>)(?:\s*)", ["<think>", "<|im_end|>"]),
        (r"(a\\b|\(c\))", ["a\\b", "(c)"]),
        ("", []),
    ],
)
def test_the_texts_that_a_tokenizer_splits_off_are_read_from_its_pattern(pattern: str, texts: list[str]) -> None:
    assert list(vocabulary._alternatives(pattern)) == texts


def test_sentencepiece_marks_become_spaces_and_bytes() -> None:
    marked = {"▁a".encode(): 0, b"<0x0A>": 1, b"<0xE6>": 2, b"b": 3}
    assert vocabulary._pieces(marked) == {0: b" a", 1: b"\n", 2: b"\xe6", 3: b"b"}
    assert vocabulary._pieces({"▁".encode(): 0}) == {0: "▁".encode()}


# ---- both engines beside each other


def replies(backend: Any, settings: LoadSettings, questions: list[GenerationRequest]) -> list[tuple[int, Reply]]:
    driver = Driver(backend)
    driver.load(settings, Control(), lambda fraction: None)
    for number, question in enumerate(questions, 1):
        driver.start(number, question)
    found: dict[int, Reply] = {}
    while driver.is_busy:
        found |= {number: event.reply for number, event in driver.step() if isinstance(event, Done)}
    driver.close()
    return [(found[number].usage.prompt_tokens or 0, found[number]) for number in sorted(found)]


def test_final_answers_of_both_engines_agree(tiny_reasoner: Path, compiled: Path) -> None:
    trials = [trial for family in heldout.FAMILIES for trial in heldout.draw_trials(family, 12, seed=11)][:100]
    asked = [
        GenerationRequest(messages=(Message(role="user", content=trial.prompt.text),), max_tokens=400)
        for trial in trials
    ]
    shared = replace(
        settings_for(tiny_reasoner, compiled), tags=THINK_TAGS, think=ThinkControl(switch="enable_thinking")
    )
    ours = replies(OpenVinoBackend(), shared, asked)
    theirs = replies(LlamaCppBackend(), shared, asked)
    assert len(ours) == len(theirs) == len(asked)
    assert [count for count, _ in ours] == [count for count, _ in theirs]
    same = sum(final_of(a.answer) == final_of(b.answer) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    assert same >= 95


def test_smollm2_gets_the_same_prompt_from_both_engines(smollm2: Path) -> None:
    theirs = LlamaCppBackend()
    theirs.load(load_settings_for("llamacpp", smollm2, context=64), Control(), lambda fraction: None)
    words = GgufWords(smollm2)
    prompt = "<|im_start|>user\n  Ünïcode 日本 😀 it's\n\n12345 tabs\t\tand <|im_end|>\n<|im_start|>assistant\n"
    assert words.tokenize(prompt, parse_control=True) == theirs._vocabulary.tokenize(prompt, parse_control=True)
    assert words.control_texts() == theirs._vocabulary.control_texts()
    assert words.end_ids() == {t for t in range(words.size) if theirs._vocabulary.is_end(t)} != set()
    words.close()
    theirs.close()


# ---- what is loaded


def test_an_openvino_folder_answers_as_the_gguf_file_it_was_made_from(
    load: Loader, tiny_reasoner: Path, tmp_path: Path, backend: OpenVinoBackend
) -> None:
    folder = openvino_folder(tiny_reasoner, tmp_path)
    other = load(folder)
    facts: ModelFacts = other._facts
    assert (facts.architecture, facts.trained_context_tokens, facts.vocabulary_size) == ("llama", 512, 768)
    assert facts.chat_template == backend._facts.chat_template
    assert (facts.bos_text, facts.eos_text, facts.adds_bos) == (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        True,
    )
    prompt = text_prompt(QUESTION)
    assert said(pieces(other, other.add(prompt, Sampling()))) == said(pieces(backend, backend.add(prompt, Sampling())))
    (folder / "chat_template.jinja").write_text("of its own", encoding="utf-8")
    assert load(folder)._facts.chat_template == "of its own"


def test_a_gguf_file_alone_is_tokenized_by_llama_cpp(
    load: Loader, tiny_reasoner: Path, tmp_path: Path, backend: OpenVinoBackend
) -> None:
    alone = load(Path(shutil.copy(tiny_reasoner, tmp_path)))
    assert isinstance(alone._words, GgufWords)
    assert isinstance(backend._words, IrWords)
    prompt = text_prompt(QUESTION)
    assert ids(pieces(alone, alone.add(prompt, Sampling()))) == ids(pieces(backend, backend.add(prompt, Sampling())))


def test_a_tokenizer_beside_a_file_that_is_another_models_is_not_taken(smollm2: Path, tmp_path: Path) -> None:
    from slm_local.backends.openvino.model import open_source

    shutil.copytree(IDLE_TOKENIZER, tmp_path / "tokenizer")
    source = open_source(Path(shutil.copy(smollm2, tmp_path)))
    assert isinstance(source.words, GgufWords)
    source.words.close()


def test_without_llama_cpp_a_gguf_file_alone_is_refused_and_the_embedded_model_runs(
    load: Loader, tiny_reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise EngineMissing("llama.cpp is not installed", hint="add it")

    monkeypatch.setattr(vocabulary, "bindings", missing)
    with pytest.raises(EngineMissing, match=r"tokenized by llama\.cpp") as caught:
        load(Path(shutil.copy(tiny_reasoner, tmp_path)))
    assert caught.value.hint == "add it"
    embedded = load(tiny_reasoner)
    assert said(pieces(embedded, embedded.add(text_prompt(QUESTION), Sampling()))).endswith("85**.")


@pytest.mark.parametrize(
    "scaling", [{"factors": [1.0] * 4 + [3.0] * 28}, {"linear": 1.3}], ids=["factors", "linear scaling"]
)
def test_rope_factors_that_openvinos_reader_leaves_out_are_put_back(
    load: Loader, tiny_reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaling: dict[str, Any]
) -> None:
    from slm_local.backends.openvino import loading

    path = with_rope(tiny_reasoner, tmp_path / "scaled.gguf", **scaling)
    reference = LlamaCppBackend()
    reference.load(load_settings_for("llamacpp", path, context=512), Control(), lambda fraction: None)
    prompt = text_prompt(QUESTION)
    expected = ids(pieces(reference, reference.add(prompt, Sampling()), 30))
    reference.close()
    mended = load(path)
    assert ids(pieces(mended, mended.add(prompt, Sampling()), 30)) == expected
    assert any("RoPE factors" in note for note in mended._facts.notes)
    monkeypatch.setattr(loading, "mended_folder", lambda header, folder: None)
    unmended = load(path)  # should this ever be equal, OpenVINO reads the factors and mending would apply them twice
    assert ids(pieces(unmended, unmended.add(prompt, Sampling()), 30)) != expected


def test_a_rope_scaling_that_is_more_than_factors_is_refused(load: Loader, tiny_reasoner: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelBroken, match="yarn"):
        load(with_rope(tiny_reasoner, tmp_path / "yarn.gguf", linear=4.0, kind="yarn"))


def test_a_cut_gguf_file_is_refused_before_native_code_sees_it(
    load: Loader, tiny_reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slm_local.backends.openvino import loading

    monkeypatch.setattr(loading, "make_pipeline", pytest.fail)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_reasoner.read_bytes()[:-1])
    with pytest.raises(ModelBroken, match="truncated"):
        load(cut)


def test_the_second_load_starts_from_the_compiled_model(load: Loader, tiny_reasoner: Path, tmp_path: Path) -> None:
    from slm_local.backends.openvino.cache import will_compile

    place = replace(settings_for(tiny_reasoner, tmp_path / "own"), threads=1)
    assert will_compile(place)
    first = load(tiny_reasoner, cache_dir=place.cache_dir)
    assert not will_compile(place)
    second = load(tiny_reasoner, cache_dir=place.cache_dir)
    assert any("for the first time" in note for note in first._facts.notes)
    assert any("compiled model kept before" in note for note in second._facts.notes)


def test_the_effective_properties_are_told_and_native_output_goes_to_the_log(
    load: Loader, tiny_reasoner: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = load(tiny_reasoner)
    out, err = capfd.readouterr()
    assert out == ""
    assert "KV_CACHE_PRECISION" in err
    told = next(note for note in backend._facts.notes if note.startswith("OpenVINO 20"))
    for part in ("on CPU (", "inference in f", "KV cache in ", "threads: 1"):
        assert part in told


def test_cancelling_a_load_ends_it(tiny_reasoner: Path, compiled: Path) -> None:
    control = Control()
    control.cancel()
    with pytest.raises(Interrupted):
        OpenVinoBackend().load(settings_for(tiny_reasoner, compiled), control, lambda fraction: None)


def test_progress_of_a_load_only_grows(tiny_reasoner: Path, compiled: Path) -> None:
    told: list[float] = []
    backend = OpenVinoBackend()
    backend.load(settings_for(tiny_reasoner, compiled), Control(), told.append)
    backend.close()
    assert told == sorted(told) != []


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        available_devices = ("CPU", "GPU.0", "GPU.1")

    monkeypatch.setattr(openvino(), "Core", Core)
    check_device("GPU")
    check_device("GPU.1")
    with pytest.raises(EngineMissing, match=r"no NPU on this machine, only CPU, GPU\.0, GPU\.1"):
        check_device("NPU")


def test_importing_the_backend_loads_no_runtime() -> None:
    probe = "import sys, slm_local.backends.openvino.backend; print(*{n.partition('.')[0] for n in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=child_environment()
    )
    assert not {"openvino", "openvino_genai", "numpy", "llama_cpp"} & set(done.stdout.split())


def test_the_runtime_is_loaded_without_its_converter_and_telemetry() -> None:
    probe = (
        "import sys; from slm_local.backends.openvino.library import genai; genai();"
        "print(*[n for n in sys.modules if 'telemetry' in n or n == 'openvino.tools.ovc'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=child_environment()
    )
    assert done.stdout.strip() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends a process no signals")
def test_signals_still_come_after_models_were_freed_in_the_order_they_were_loaded(
    tiny_reasoner: Path, compiled: Path
) -> None:
    probe = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from slm_local.backends.openvino.backend import OpenVinoBackend\n"
        "from slm_local.generation import Control\n"
        "from tests.test_openvino import settings_for\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('the handler ran'))\n"
        "models = [OpenVinoBackend(), OpenVinoBackend()]\n"
        "for model in models:\n"
        "    model.load(settings_for(*map(Path, sys.argv[1:])), Control(), lambda fraction: None)\n"
        "for model in models:\n"
        "    model.close()\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, tiny_reasoner, compiled], capture_output=True, text=True, env=child_environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the handler ran"
