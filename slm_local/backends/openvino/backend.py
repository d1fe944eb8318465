"""OpenVINO GenAI behind the backend protocol: add requests, step, read.

A prompt is read in chunks, each a request for one token with a longer beginning of it: the prefix cache keeps what was
computed, so that a chunk's size can follow the speed seen, and a cancel leaves nothing undone. What prompts have in
common is computed for the first of them; the others are held back until then. Text is made from tokens
here, so that none is held back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from typing import Any

from slm_local.backends.base import known_ids, misbegun, prompt_too_long, shared_prefix
from slm_local.backends.llamacpp.vocabulary import TokenText
from slm_local.backends.openvino.grammar import grammar_of
from slm_local.backends.openvino.library import genai, reason_of
from slm_local.backends.openvino.loading import WARM_UP_TOKENS, load_model
from slm_local.backends.openvino.pipelines import Output
from slm_local.backends.openvino.reading import ChunkSize, Ledger
from slm_local.backends.openvino.sampling import drawn_seed, generation_config, sampling_fields
from slm_local.errors import SlmError, UsageError
from slm_local.generation import (
    Control,
    Handle,
    LoadSettings,
    ModelFacts,
    Piece,
    PieceEnd,
    Prompt,
    PromptProgress,
    Sampling,
    Update,
)


@dataclass(slots=True)
class Sequence:
    """One prompt and what was made of it."""

    handle: Handle
    ids: list[int]
    """Prompt, generated and injected tokens."""
    fields: dict[str, Any]
    seed: int
    told_tokens: int = 0
    """How much of the prompt was reported as read."""
    read_tokens: int = 0
    """How many leading tokens were computed by chunks."""
    chunk_end: int | None = None
    """Where the chunk ends that its request reads; None: the request, if any, reads the rest and generates."""
    request: int | None = None
    is_generating: bool = False
    is_read_only: bool = False
    """Whether its prompt is read for a later one, and nothing generated."""
    has_ended: bool = False
    """Whether it came to an end and waits to be removed, or continued by an injection."""
    is_fork: bool = False
    grammar: str | None = None
    """What all that is generated has to match; None: nothing."""
    text: TokenText = field(default_factory=TokenText)
    injected: list[Piece] = field(default_factory=list)
    """What an injection will show once its tokens, the last of `ids`, are read."""


class OpenVinoBackend:
    """One model in OpenVINO GenAI: a GGUF file or an OpenVINO folder, on processor, GPU or NPU."""

    def __init__(self) -> None:
        self.capabilities: frozenset[str] = frozenset()
        """Known once loaded. `cached_tokens` is never among them: the runtime does not tell."""
        self.max_sequences = 1
        self._live: dict[int, Sequence] = {}
        self._handles = 0
        self.step_s = 0.0
        """Seconds spent inside the runtime's steps, for measuring what everything else costs."""

    # ---- loading

    def load(self, settings: LoadSettings, control: Control, on_progress: Callable[[float], None]) -> ModelFacts:
        """Load a GGUF file or an OpenVINO folder. Errors: `EngineMissing`, `ModelBroken`, `DoesNotFit`, ..."""
        loaded = load_model(settings, control, on_progress)
        self._facts, self._words, self._pipeline = loaded.facts, loaded.words, loaded.pipeline
        self.capabilities, self.max_sequences = frozenset(loaded.facts.capabilities), loaded.pipeline.sequences
        self._ends = loaded.words.end_ids()
        self._context_tokens = settings.context_tokens
        self._ledger = Ledger(settings.context_tokens)
        self._chunks = ChunkSize(settings.batch_tokens)
        if loaded.warm_up_s:
            self._chunks.record(WARM_UP_TOKENS, loaded.warm_up_s)
        return loaded.facts

    # ---- sequences

    def add(self, prompt: Prompt, sampling: Sampling | None) -> Handle:
        """Queue a prompt. Errors: `PromptTooLong`, `UsageError`."""
        ids = self.token_ids(prompt)
        if not ids:
            raise UsageError("the prompt has no tokens", hint="give a prompt")
        room = min(self._context_tokens, self._pipeline.longest_prompt + 1)
        if len(ids) >= room:
            raise prompt_too_long(len(ids), room, self._facts.trained_context_tokens)
        wanted = sampling or Sampling()
        fields, seed = sampling_fields(wanted), drawn_seed(wanted)
        self._config(fields, seed, most_tokens=1)  # refused now, not at a step
        self._handles += 1
        handle = Handle(id=self._handles, prompt_tokens=len(ids), cached_tokens=None)
        reads_only = sampling is None
        self._live[handle.id] = Sequence(handle=handle, ids=ids, fields=fields, seed=seed, is_read_only=reads_only)
        return handle

    def fork(self, handle: Handle, text: str, sampling: Sampling) -> Handle | None:
        """Begin a sequence that goes on from all that another holds and has queued, and from `text` behind it.

        To the runtime it is a request of its own, whose whole blocks it finds computed; penalties as after `inject`.
        None when no place is free. Errors: `PromptTooLong`, `UsageError`.
        """
        if sum(sequence.is_fork for sequence in self._live.values()) >= self._pipeline.forks:
            return None
        parent = self._live[handle.id]
        if parent.is_generating:
            self._ledger.remember(parent.ids[:-1])
        added = self._words.tokenize(text, parse_control=True)
        fork = self.add(Prompt(ids=(*parent.ids, *added)), sampling)
        self._live[fork.id].is_fork = True
        if not text:
            self._live[fork.id].text = parent.text.copy()
        return fork

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Return the tokens that `add` makes of a prompt. Errors: `UsageError` for ids that the vocabulary lacks."""
        if prompt.ids is None:
            tokenize = self._words.tokenize
            return [token for run in prompt.runs for token in tokenize(run.text, parse_control=run.allows_control)]
        return known_ids(prompt.ids, self._words.size)

    def token_bytes(self, ids: Series[int]) -> list[bytes]:
        """Return the text of each token. Errors: `UsageError` for ids that the vocabulary lacks."""
        return [self._words.piece(token) for token in known_ids(ids, self._words.size)]

    def inject(self, handle: Handle, text: str) -> None:
        """End the request and go on with another: prompt, what was generated, and `text`.

        To the runtime it is all prompt: the penalties of presence and frequency start anew, that of repetition goes on.
        """
        sequence = self._live[handle.id]
        self._halt(sequence)
        sequence.has_ended = False
        unfinished = sequence.text.flush()
        if unfinished:
            sequence.injected.append(Piece(handle=handle, text=unfinished, ids=()))
        for token in self._words.tokenize(text, parse_control=True):
            sequence.ids.append(token)
            shown = sequence.text.feed(self._words.piece(token))
            sequence.injected.append(Piece(handle=handle, text=shown, ids=(token,), injected=True))
        sequence.seed = (sequence.seed + 1) % 2**32  # the same draws over again would be no draws

    def check_schema(self, schema: str) -> None:
        """Make a grammar of a schema. Errors: `UsageError`."""
        grammar_of(schema)

    def constrain(self, handle: Handle, schema: str, begun: str = "") -> None:
        """End the request and go on with another, of which all that is generated matches a schema."""
        if begun:
            raise misbegun(begun)
        sequence = self._live[handle.id]
        self._halt(sequence)
        sequence.grammar = grammar_of(schema)
        sequence.seed = (sequence.seed + 1) % 2**32

    def token_count(self, text: str) -> int:
        """Return how many tokens `inject` makes of a text."""
        return len(self._words.tokenize(text, parse_control=True))

    def remove(self, handle: Handle) -> None:
        """Stop a sequence; its blocks stay for the next prompt that begins alike."""
        sequence = self._live.pop(handle.id, None)
        if sequence is not None:
            self._halt(sequence)

    def close(self) -> None:
        """Free the model."""
        self._live = {}
        self._pipeline.close()
        self._words.close()

    def _halt(self, sequence: Sequence) -> None:
        """End a sequence's request, whatever it was at; keep in mind what it computed."""
        if sequence.request is not None:
            self._pipeline.stop(sequence.request)
        if sequence.is_generating:
            self._ledger.remember(sequence.ids[:-1])  # the token sampled last was not computed yet
        elif sequence.read_tokens:
            self._ledger.remember(sequence.ids[: sequence.read_tokens])
        sequence.read_tokens, sequence.request, sequence.chunk_end = 0, None, None
        sequence.is_generating = False

    # ---- the loop

    def step(self, control: Control) -> list[Update]:
        """Decode one token of every sequence that generates and read one chunk of one that reads its prompt."""
        if control.cancelled or not self._live:
            return []
        updates: list[Update] = [self._ended(sequence, "", (), "context") for sequence in self._too_long()]
        chunk = self._feed()
        begun = time.perf_counter()
        try:
            outputs = self._pipeline.step(control)
        except RuntimeError as error:
            raise SlmError(f"OpenVINO failed to compute: {reason_of(error)}", hint="slm chat") from error
        spent_s = time.perf_counter() - begun
        self.step_s += spent_s
        by_request = {sequence.request: sequence for sequence in self._live.values()}
        for output in outputs:
            updates += self._harvest(by_request[output.request], output)
        if chunk:
            self._chunks.record(chunk, spent_s)
        return updates

    def _feed(self) -> int:
        """Give requests to sequences that have none; return how many tokens they will read in the next step.

        At most a chunk is read in a step, and nothing twice: one whose prompt begins as that of another which is read
        in this step gets its request in the next. Who waits for an answer after an injection is served first.
        """
        waiting = [each for each in self._live.values() if each.request is None and not each.has_ended]
        if any(sequence.chunk_end is not None for sequence in self._live.values()):
            return 0
        fed: list[Sequence] = []
        tokens = 0
        for sequence in sorted(waiting, key=lambda each: not each.injected):
            known = max(sequence.read_tokens, self._ledger.known(sequence.ids)) if self._pipeline.keeps_prefixes else 0
            fits = tokens + len(sequence.ids) - known <= self._chunks.size
            if fed and (not fits or any(shared_prefix(each.ids, sequence.ids[:-1]) > known for each in fed)):
                continue
            tokens += self._start(sequence, known)
            fed.append(sequence)
            if sequence.chunk_end is not None:
                break
        return tokens

    def _start(self, sequence: Sequence, known: int) -> int:
        """Give a sequence a request that reads a chunk, or all that is left, of what is not known; return how much."""
        end = len(sequence.ids)
        if self._pipeline.keeps_prefixes:
            end = min(known + self._chunks.size, end)
        if end < len(sequence.ids) or sequence.is_read_only:
            sequence.chunk_end = end
            config = self._config({"do_sample": False}, 0, most_tokens=1)
        else:
            fields = dict(sequence.fields)
            if sequence.grammar is not None:
                fields["structured_output_config"] = genai().StructuredOutputConfig(grammar=sequence.grammar)
            config = self._config(fields, sequence.seed, most_tokens=self._context_tokens + 1 - end)
        sequence.request = self._pipeline.start(sequence.ids[:end], config)
        return end - known

    def _config(self, fields: dict[str, Any], seed: int, *, most_tokens: int) -> Any:
        ends = self._ends
        return generation_config(genai(), fields, seed=seed, most_tokens=most_tokens, end_id=min(ends), end_ids=ends)

    def _too_long(self) -> list[Sequence]:
        """Return the sequences that wait for a request and are too long to be read again."""
        longest = min(self._context_tokens, self._pipeline.longest_prompt)
        waiting = [each for each in self._live.values() if each.request is None and not each.has_ended]
        return [each for each in waiting if len(each.ids) > longest]

    def _harvest(self, sequence: Sequence, output: Output) -> list[Update]:
        if sequence.chunk_end is not None:
            return self._end_of_chunk(sequence, sequence.chunk_end, output)
        updates: list[Update] = []
        for place, token in enumerate(output.ids):
            if not sequence.is_generating:
                sequence.is_generating = True
                self._ledger.remember(sequence.ids)
                updates += self._progress(sequence, sequence.handle.prompt_tokens or 0)
                updates += sequence.injected
                sequence.injected = []
            if token in self._ends:
                return [*updates, self._ended(sequence, "", (token,), "stop")]
            sequence.ids.append(token)
            text = sequence.text.feed(self._words.piece(token))
            if output.end is not None and place == len(output.ids) - 1:
                return [*updates, self._ended(sequence, text, (token,), "context")]
            updates.append(Piece(handle=sequence.handle, text=text, ids=(token,)))
        if output.end is not None:
            updates.append(self._ended(sequence, "", (), "context"))
        return updates

    def _end_of_chunk(self, sequence: Sequence, end: int, output: Output) -> list[Update]:
        if output.end is None:
            return []
        if output.end == "memory":
            return [self._ended(sequence, "", (), "context")]
        sequence.read_tokens, sequence.request, sequence.chunk_end = end, None, None
        sequence.has_ended = sequence.is_read_only and end == len(sequence.ids)
        return self._progress(sequence, end)

    def _progress(self, sequence: Sequence, done_tokens: int) -> list[Update]:
        """Tell how much of a prompt was read, unless all of it was told before."""
        handle, total = sequence.handle, sequence.handle.prompt_tokens or 0
        if sequence.told_tokens >= total:
            return []
        sequence.told_tokens = min(done_tokens, total)
        return [PromptProgress(handle=handle, done_tokens=sequence.told_tokens, total_tokens=total)]

    def _ended(self, sequence: Sequence, text: str, ids: tuple[int, ...], end: PieceEnd) -> Piece:
        """End a sequence; what was injected and not read is as if it never was."""
        self._halt(sequence)
        sequence.has_ended = True
        dropped = sum(piece.injected for piece in sequence.injected)
        unfinished = "".join(piece.text for piece in sequence.injected if not piece.injected) + sequence.text.flush()
        sequence.injected, sequence.ids = [], sequence.ids[: len(sequence.ids) - dropped]
        return Piece(handle=sequence.handle, text=text + unfinished, ids=ids, end=end)
