"""The seam that every runtime fits: add sequences, step them all, inject, remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from slm_local.errors import PromptTooLong, SlmError, UsageError
from slm_local.generation import (
    Control,
    GenerationRequest,
    Handle,
    LoadSettings,
    ModelFacts,
    Prompt,
    Sampling,
    StateMoved,
    Update,
)


class Backend(Protocol):
    """One loaded model, used by one thread, inside the child process."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Return what this runtime can do beyond the protocol: "samples", "fork", "cached_tokens", "threads", ..."""
        ...

    @property
    def max_sequences(self) -> int:
        """Return how many sequences may be live at once."""
        ...

    def load(self, settings: LoadSettings, control: Control, on_progress: Callable[[float], None]) -> ModelFacts:
        """Load the model; blocks. `on_progress` gets the fraction done, in 0..1.

        Errors: `EngineMissing`, `ModelBroken`, `DoesNotFit`, `Interrupted` when cancelled.
        """
        ...

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Return the tokens that `add` makes of a prompt. Errors: `UsageError` for ids that the vocabulary lacks."""
        ...

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Return the text of each token, control tokens included. Errors: `UsageError` for ids it does not know."""
        ...

    def add(self, prompt: Prompt, sampling: Sampling | None) -> Handle:
        """Tokenize a prompt and queue it; compute nothing.

        What it has in common with another sequence is read once: one that finds it being read waits for it, and tells
        of it by a `PromptProgress` when it has it.

        `sampling` None: the prompt is only read, for a later one that begins alike. After its last `PromptProgress`
        (there is none where `cached_tokens` is the whole prompt) the sequence is stepped no more, until `remove`.
        Errors: `PromptTooLong` with both counts, `UsageError` for a sampling field the runtime lacks.
        """
        ...

    def step(self, control: Control) -> list[Update]:
        """Do one decode, or one prefill chunk, for all live sequences.

        At most one token that the model wrote is added to a sequence. A piece with an `end` is its last: the sequence
        is stepped no more and stays until `remove`, or until `inject` makes it go on after a "stop". A cancelled
        control ends the step early, without updates lost: what was decoded is kept, the rest is done by the next step.
        One that can't go on gives a `Failed`; an error raised ends all. What a runtime decided by itself comes as a
        `Note` for each sequence it concerns, before their pieces.
        """
        ...

    def inject(self, handle: Handle, text: str) -> None:
        """Continue a sequence with `text`, tokenized alone with control tokens on.

        Its tokens come out of the next step that has read the whole prompt, after the last `PromptProgress`, as pieces
        marked `injected`, before the model goes on. What the model wrote stays; only a token that ended the sequence
        (`end` is "stop") is no part of it. A character left unfinished comes out first, as one U+FFFD without ids.
        """
        ...

    def fork(self, handle: Handle, text: str, sampling: Sampling) -> Handle | None:
        """Begin a sequence that goes on from all that `handle` holds and has queued, and from `text` behind it.

        `text` is tokenized alone with control tokens on and yields no pieces: the first are those that the fork samples
        itself. `prompt_tokens` is all before them. The original is as if nothing had happened. None when no place is
        free; a fork takes none from `max_sequences`. Errors: `PromptTooLong`. Where "fork" is among the capabilities.
        """
        ...

    def token_count(self, text: str) -> int:
        """Return how many tokens `inject` makes of a text."""
        ...

    def remove(self, handle: Handle) -> None:
        """Stop a sequence; its KV cache stays consistent and can be reused by a later prompt."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@runtime_checkable
class Chats(Protocol):
    """What a backend with the capability "chat" can do besides: it takes conversations as they are.

    What others have and it may lack are "inject" (going on behind a text of ours), "ids" (prompts of token ids) and
    "counts" (of the tokens of each piece).
    """

    def prompt_for(self, request: GenerationRequest, control: Control) -> Prompt:
        """Return the prompt of a request, raw or not, with how it leaves thinking; blocks.

        Errors: `UsageError`, `RemoteFailed`, `Interrupted` when cancelled.
        """
        ...


@runtime_checkable
class KeepsState(Protocol):
    """What a backend with the capability "state" can do besides."""

    def save_state(self, ids: Sequence[int], path: Path, model: str, most_bytes: int) -> StateMoved:
        """Write the state of the longest beginning of `ids` that an idle sequence holds to a file; blocks.

        `model` tells the model's file from any other. What the sequence holds beyond that is dropped.
        """
        ...

    def restore_state(self, path: Path, model: str) -> StateMoved:
        """Read a state into an idle sequence, for a prompt that begins alike; blocks.

        What is not of this model, loaded in this way, or is damaged is refused before native code sees it.
        """
        ...


@runtime_checkable
class Structures(Protocol):
    """What a backend with the capability "schema" can do besides."""

    def check_schema(self, schema: str) -> None:
        """Compile a JSON Schema. Errors: `UsageError` saying what of it can't be held to."""
        ...

    def constrain(self, handle: Handle, schema: str, begun: str = "") -> None:
        """Have all that the model writes from its next token on match a schema, white space before it aside.

        What was injected and not read yet is no part of it. `begun`: what was written of the answer already. The model
        can't end before the answer is whole, and ends then. Errors: as `check_schema`; `SlmError` for a beginning that
        the schema does not allow.
        """
        ...


def misbegun(begun: str) -> SlmError:
    """Make the error for an answer that began in one token with the end of thinking, and can't go on from there."""
    return SlmError(
        f"the answer began with {begun!r} in the token that ended thinking, before its schema was in force",
        hint="--think off",
    )


ANSWER_ROOM_TOKENS = 1024
"""What a hint for a longer context adds to the prompt."""


def prompt_too_long(
    prompt_tokens: int, context_tokens: int, longest_tokens: int, *, answer_tokens: int = 0, closing_tokens: int = 0
) -> PromptTooLong:
    """Make the error for a prompt that leaves no room for an answer, with all counts.

    `longest_tokens` is the longest context that the model was made for; `answer_tokens` and `closing_tokens` are kept
    for the answer and for what ends thinking.
    """
    kept = answer_tokens + closing_tokens
    enough = min(prompt_tokens + max(ANSWER_ROOM_TOKENS, kept), longest_tokens)
    is_possible = prompt_tokens + max(1, kept) <= enough
    room = context_tokens - prompt_tokens - closing_tokens
    hint = f"shorten it: this model reads {longest_tokens:,} tokens at most"
    if is_possible:
        hint = f"--ctx {enough}"
    elif answer_tokens > room > 0:
        hint = f"--answer-reserve {room}"
    what = f", {answer_tokens:,} of them for the answer and {closing_tokens:,} to end thinking" if kept else ""
    return PromptTooLong(
        f"the prompt has {prompt_tokens:,} tokens and the context holds {context_tokens:,}{what}",
        hint=hint,
    )


def known_ids(ids: Sequence[int], vocabulary_size: int) -> list[int]:
    """Return the ids of a prompt. Errors: `UsageError` for one that the vocabulary lacks."""
    unknown = next((token for token in ids if not 0 <= token < vocabulary_size), None)
    if unknown is not None:
        raise UsageError(
            f"token id {unknown} is not in the vocabulary of {vocabulary_size:,}",
            hint="give ids of this model's own vocabulary",
        )
    return list(ids)


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading items two sequences share; blockwise, so that equal stretches cost one comparison."""
    end = min(len(left), len(right))
    at, block = 0, 256
    while at < end and left[at : at + block] == right[at : at + block]:
        at += block
    while at < end and left[at] == right[at]:
        at += 1
    return min(at, end)
