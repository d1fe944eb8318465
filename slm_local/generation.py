"""What is asked of a model and what comes back: values only.

Requests go down to a backend, events come up from it. Nothing here computes, reads a file or knows a runtime.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from slm_local.errors import FailureRecord

Role = Literal["system", "user", "assistant", "tool"]

ThinkMode = Literal["auto", "on", "open", "off"]
"""How the prompt leaves thinking: `auto`: as the model's template does; `on`: opened, an error where that can't be;
`open`: opened where it can be, as a limit of thinking asks for; `off`: closed."""

ThinkState = Literal["unopened", "open", "closed"]
"""How the rendered prompt leaves thinking, read off its tail."""

Finish = Literal["stop", "length", "context", "loop", "empty", "cancelled", "error"]
"""Why the reply ended."""

Cut = Literal["none", "budget", "time", "context", "max_tokens", "loop", "user", "converged"]
"""Why thinking ended before the model ended it."""

PieceEnd = Literal["stop", "context", "length"]
"""Why a backend's sequence ended: the model's end-of-generation token, a full context, or, where a server was told the
request's `max_tokens`, that limit."""

DEFAULT_BRIDGE = " Enough thinking, I answer now."
"""What is put before the closing tag when thinking is ended for the model; the embedded models are trained on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `content` never holds thinking."""

    role: Role
    content: str
    tool_calls: str = ""
    """JSON of the calls that an assistant made: a list of OpenAI's `tool_calls`, arguments as objects; empty: none."""
    tool_call_id: str = ""
    """Which call the content of a `tool` message is the result of."""
    name: str = ""
    """The function that it is the result of, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; every default means "off".

    Temperature comes first, then the truncations, as in transformers, vLLM and OpenVINO GenAI.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """1 is off."""
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """0 is off."""
    repeat_penalty: float = 1.0
    """1 is off; looks at the last `repeat_last_n` tokens."""
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None draws a fresh one."""


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """How a model marks its thinking, as strings of its output. Source: the models' chat templates."""

    open: str
    close: str
    force_open: bool = False
    """Whether the prompt opens thinking even in `auto`, since the model tends to skip the tag."""
    skip: tuple[str, ...] = ()
    """Strings without text where they stand before thinking or before the answer (gpt-oss: channel headers)."""
    answer_open: str = ""
    """What stands between the closing tag and the answer (gpt-oss: the header of the final channel)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkControl:
    """How thinking is switched by a model's template; what is None can't be done that way."""

    switch: str | None = None
    """A template variable that takes true and false, such as `enable_thinking`."""
    off_word: str | None = None
    """A word for the system text that switches thinking off, such as `/no_think`."""
    off_block: bool = True
    """Whether an empty think block at the prompt's end switches it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """How a person asked for thinking, and for how much of it; as it comes, nothing was asked."""

    mode: ThinkMode = "auto"
    max_tokens: int | None = None
    """Most tokens of it, tags and what is injected not counted; None: no limit. 0 opens and ends it at once."""
    max_s: float | None = None
    """Longest thinking, in seconds from its first token; None: no limit."""
    word: str = ""
    """As it was written: `high`, `256`, `30s`, ...; empty where nobody wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A conversation (or raw token ids), how to sample, where to end and how to think."""

    messages: tuple[Message, ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    """Raw ids: neither templated, split nor governed."""
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    """Most tokens generated, thinking and answer together; None: what the context leaves."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    think: ThinkMode = "auto"
    think_tokens: int | None = None
    """Most tokens of thinking, tags and what is injected not counted; None: no limit."""
    think_s: float | None = None
    """Longest thinking, in seconds from its first token; None: no limit."""
    answer_reserve: int | None = None
    """Tokens kept free for the answer; None: what the governor keeps by itself."""
    has_loop_guard: bool = True
    early_exit: bool = False
    """Whether thinking ends once its answer has settled, as probes beside it tell."""
    schema: str | None = None
    """A JSON Schema, as text, that the answer has to match; thinking before it is free. None: any answer."""
    tools: str = ""
    """JSON of the functions that the model may call: a list of OpenAI's `tools`, for the chat template; empty: none."""
    must_call: tuple[str, ...] = ()
    """Names of those of them one of which the answer has to call; empty: that is for the model to decide."""
    logprobs: int | None = None
    """So many of the likeliest tokens are told, with its own, for each token of the answer (all tokens, where the
    request is raw); 0: its own alone; None: nothing."""
    scores_prompt: bool = False
    """Whether the same is told of each token of a prompt of raw ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """Everything a child process needs to load one model."""

    backend: str
    model_path: str
    context_tokens: int
    threads: int
    tags: ReasoningTags | None = None
    """None: derived from the template and vocabulary."""
    think: ThinkControl | None = None
    """None: derived likewise."""
    template: str | None = None
    """A chat template that replaces the file's own."""
    bridge: str | None = None
    """What is put before the closing tag when thinking is ended for the model; None: `DEFAULT_BRIDGE`."""
    batch_tokens: int = 512
    """Most tokens of a prompt decoded in one call."""
    device: str = "cpu"
    """`cpu`, `gpu` or `npu`, with a number where there are several: `gpu.1`."""
    cache_dir: str | None = None
    """Where compiled models are kept; None: a folder of our own cache."""
    prompt_tokens: int | None = None
    """Longest prompt, thoughts read again included, on a device of fixed shapes (NPU); None: the context."""
    response_tokens: int | None = None
    """Longest response on such a device; None: the context."""
    speculation: bool = True
    """Whether tokens may be guessed ahead and verified several at once, where the runtime can and it pays."""
    remote_model: str = ""
    """What a remote engine, whose address is `model_path`, calls the model."""
    key_env: str = ""
    """The variable that holds the key for it; empty: `SLM_REMOTE_KEY`. The key itself is in no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the loaded model says of itself."""

    architecture: str
    name: str
    context_tokens: int
    """The context that was opened."""
    trained_context_tokens: int
    vocabulary_size: int
    chat_template: str | None
    bos_text: str
    """Empty where there is none."""
    eos_text: str
    adds_bos: bool
    """Whether the vocabulary asks for a BOS before every prompt."""
    bos_id: int | None = None
    """None where there is none."""
    eos_id: int | None = None
    pad_id: int | None = None
    pad_text: str = ""
    control_texts: tuple[str, ...]
    """Texts of all control and user-defined tokens: what user text must never become."""
    capabilities: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was decided while loading, for `-v`."""
    sequences: int = 1
    """Most requests that run at once; others wait for a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRun:
    """A stretch of the rendered prompt that is tokenized whole."""

    text: str
    allows_control: bool
    """Whether control tokens' texts in it become control tokens: true for the scaffold, false for users' text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a backend tokenizes: runs of text, or raw ids; for one that chats, the request itself."""

    runs: tuple[PromptRun, ...] = ()
    ids: tuple[int, ...] | None = None
    think_state: ThinkState = "unopened"
    request: GenerationRequest | None = None
    """For a backend with the capability "chat", which renders conversations elsewhere."""
    rendered: tuple[int, ...] = ()
    """The tokens of what it renders, where it tells."""
    opening: str = ""
    """What stands behind that before the model writes: a tag that opens thinking, or an empty block."""
    switch: bool | None = None
    """How the template's variable for thinking is set; None: not at all."""
    is_kept: bool = False
    """Whether the engine keeps to the request's limit of thinking itself: it marks what it ends it with as injected."""
    logprobs: int | None = None
    """As in the request: of each token that the model writes."""
    scores_prompt: bool = False
    """Whether each token of the prompt itself is scored, too; then nothing of it is taken from the KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """Names one live sequence of a backend, with the counts of its prompt; equal by `id`."""

    id: int
    prompt_tokens: int | None = field(compare=False)
    cached_tokens: int | None = field(compare=False)
    """Expected when added; the handle of a `PromptProgress` has what it turned out to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptProgress:
    """So much of the prompt has been read; the last one has `done_tokens == total_tokens`."""

    handle: Handle | None = None
    """Set by a backend; None once it is an event."""
    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What the engine decided while it ran and a person may want to know."""

    handle: Handle | None = None
    """Set by a backend; None once it is an event."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """How likely a token was to the model, before temperature and truncation."""

    id: int
    data: tuple[int, ...]
    """Its text, as bytes: a token may be part of a character."""
    logprob: float | None
    """Natural logarithm of its probability; None for the first token of a prompt, which nothing precedes."""
    top: tuple[TokenScore, ...] = ()
    """The likeliest in its place, best first, as many as were asked for; their own `top` is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The text and tokens that one step added to a sequence."""

    handle: Handle
    text: str
    ids: tuple[int, ...]
    """Empty for a remote that gives none."""
    tokens: int | None = None
    """How many tokens it is, where that is known and `ids` are not; None: as many as `ids`."""
    told: Told | None = None
    """On the last piece of a remote that counts whole replies only; its other pieces have 0 tokens."""
    injected: bool = False
    scores: tuple[TokenScore, ...] = ()
    """One for each of `ids`, where the request asked for them and the model wrote them."""
    end: PieceEnd | None = None
    drafted_tokens: int = 0
    """Tokens drafted to follow, and decoded with, what this piece was sampled from."""
    is_accepted: bool = False
    """Whether its token had been drafted."""

    @property
    def count(self) -> int:
        """Return how many tokens it is."""
        return len(self.ids) if self.tokens is None else self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScores:
    """How likely each token of a raw prompt was, once all of it is read; before the first delta."""

    handle: Handle | None = None
    """Set by a backend; None once it is an event."""
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a remote says of a whole reply; None is what it does not say."""

    prompt_tokens: int | None
    cached_tokens: int | None
    generated_tokens: int | None
    think_tokens: int | None
    cut: Cut = "none"
    finish: Finish | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A sequence can't go on, while the others can; it is stepped no more."""

    handle: Handle
    record: FailureRecord


Update = PromptProgress | PromptScores | Note | Piece | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one reply; None where the runtime does not say, never an estimate."""

    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    """Prompt tokens found in the KV cache; the last prompt token is always decoded again for its logits."""
    think_tokens: int | None = 0
    answer_tokens: int | None = 0
    tag_tokens: int | None = 0
    """Tag tokens that the model wrote; inside `think_tokens`."""
    injected_tokens: int | None = 0
    """Inside `think_tokens`."""
    probes: int | None = 0
    """How often the answer was tried while the model thought."""
    probe_tokens: int | None = 0
    """Tokens read and written for that, outside thinking and answer."""
    drafted_tokens: int | None = 0
    """Tokens guessed ahead, to be verified several at once."""
    accepted_tokens: int | None = 0
    """Those of the tokens generated that had been guessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds by the parent's clock from the request; rates in tokens per second."""

    load_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    first_answer_s: float = 0.0
    decode_s: float = 0.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply, finished or not."""

    thinking: str
    answer: str
    finish: Finish
    cut: Cut
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """First event of every generation, sent once the prompt is tokenized."""

    prompt_tokens: int | None
    cached_tokens: int | None
    context_tokens: int
    think_state: ThinkState
    think_tokens: int | None = None
    """Most tokens of thinking that the request's limits and the room for it allow; None: nothing bounds it."""
    tool_family: str = ""
    """How the model writes calls (`toolcalls.FAMILIES`), where the request offers tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkDelta:
    """Text that thinking grew by."""

    text: str
    """Empty where tokens came that stand for no text of it: the closing tag's."""
    tokens: int
    """Tokens counted as thinking since the last delta, tags and held-back text included."""
    injected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDelta:
    """Text that the answer grew by."""

    text: str
    tokens: int
    injected: bool = False
    scores: tuple[TokenScore, ...] = ()
    """Of the tokens that the text is made of, where the request asked for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Last event of every generation, exactly once."""

    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Last word of a preparation: how much of the next prompt's beginning the KV cache holds now."""

    held_tokens: int | None
    """None where the runtime does not say."""
    total_tokens: int
    """0 where nothing is known of the next prompt."""
    cached_tokens: int | None = None
    """How much of it was held before anything was read; None where the runtime does not say."""
    note: str = ""
    """Why it is not all of it, where something other than a request was in the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateOrder:
    """A KV state to be saved (with a request) or restored (without one)."""

    path: str
    model: str
    """Tells the model's file from any other."""
    request: GenerationRequest | None = None
    """Its last message is the next one as far as it is known; what all prompts begin with that go on so is saved."""
    least_tokens: int = 0
    """Fewer are not worth a file."""
    most_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMoved:
    """What came of a KV state's order."""

    tokens: int
    """How many tokens' state was written or is held now; 0: nothing was done."""
    note: str = ""
    """Why, where nothing was done."""
    is_refused: bool = False
    """Whether the file can't be used and may go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOrder:
    """What is to be tokenized, or made text of: one of the three."""

    text: str | None = None
    request: GenerationRequest | None = None
    """Its prompt, as it would be read: rendered by the chat template."""
    ids: tuple[int, ...] | None = None
    adds_special: bool = False
    """Whether a BOS is put before a text, where the vocabulary asks for one."""
    parses_special: bool = False
    """Whether control tokens' texts in a text become control tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids and the bytes of each; joined and decoded they are the text."""

    ids: tuple[int, ...]
    data: tuple[tuple[int, ...], ...]


StreamEvent = Started | PromptProgress | Note | PromptScores | ThinkDelta | AnswerDelta | Done


class Control:
    """Flags that another thread raises and every loop over tokens reads."""

    def __init__(self) -> None:
        self._cancelled = _Flag()
        self._thinking_ended = _Flag()

    @property
    def cancelled(self) -> bool:
        """Whether the generation should end now."""
        return self._cancelled.is_raised

    def cancel(self) -> None:
        """Ask for the end of the generation; may be called from any thread or signal handler, more than once."""
        self._cancelled.raise_it()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the cancelling thread (at once if it already is cancelled)."""
        self._cancelled.on_raise(callback)

    @property
    def thinking_ended(self) -> bool:
        """Whether thinking should end now and the answer begin."""
        return self._thinking_ended.is_raised

    def end_thinking(self) -> None:
        """Ask for the answer now, from any thread or signal handler; before the first token there is no thinking."""
        self._thinking_ended.raise_it()

    def on_end_thinking(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the thread that ends thinking (at once if it was asked for already)."""
        self._thinking_ended.on_raise(callback)


class _Flag:
    """Raised once; whoever asked is told."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_raised(self) -> bool:
        return self._event.is_set()

    def raise_it(self) -> None:
        self._event.set()
        for callback in self._callbacks:
            callback()

    def on_raise(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        if self.is_raised:
            callback()
