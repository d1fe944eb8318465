"""What slm says beside an answer: the plan before it, why it ended, timings after it, a better model for the job."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from shlex import quote

from slm_local.config import Settings
from slm_local.engine import Engine
from slm_local.forecast.thinking import limit_words
from slm_local.generation import Reply, Sampling, Started, Thinking, Usage
from slm_local.model import ModelSpec, Plan
from slm_local.selector import gigabytes
from slm_local.thinking import cut_words

OFF = asdict(Sampling())

EARLY = "; it ends once its answer has settled"

REPEATS_LESS = "-o repeat_penalty=1.1"

NEXT_WORDS = {"low": "medium", "medium": "high"}
"""What allows more thinking than a word; after the last one `max` does."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line about a reply, and what to type about it."""

    text: str
    hint: str | None = None
    is_warning: bool = True
    """False for what was asked for."""


def kept_open(engine: Engine) -> str | None:
    """Return how long a model stays open behind the command, and what ends that; None where nobody asked for it."""
    asked_s = engine.settings.keep_alive_s
    if not asked_s or not engine.service:
        return None
    time = "until it is stopped" if math.isinf(asked_s) else f"for {time_words(asked_s)} after its last use"
    return f"{engine.spec.id} stays open {time} · slm ps shows it, slm stop ends it"


def time_words(seconds: float) -> str:
    """Write a time in the two units that matter: 45 s, 9 min 30 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    unit, larger, smaller = (60, "min", "s") if whole < 3600 else (3600, "h", "min")
    first, rest = divmod(whole, unit)
    rest = rest if unit == 60 else rest // 60
    return f"{first} {larger}" + (f" {rest} {smaller}" if rest else "")


KEEPING = "keeping the chat warm…"
LONG_KEEPING_S = 1.0
"""A state that takes longer to be saved than this is spoken of."""


def plan_lines(engine: Engine) -> list[str]:
    """Return the plan with its reasons and the applied defaults, for `-v`."""
    plan, facts = engine.plan, engine.facts
    sampling = engine.sampling()
    lines = [
        f"model:     {plan.spec.id} · {plan.variant.quant} · {plan.variant.path or plan.variant.repo or ''}",
        f"engine:    {plan.backend} on {plan.device}{threads_words(plan)} · context {facts.context_tokens:,}",
        *_listed("because:", plan.reasons),
        f"sampling:  {sampling_words(sampling)}",
        f"think:     {think_words(engine)}{EARLY if engine.settings.early_exit else ''}",
    ]
    if plan.spec.advises_against_system and (engine.settings.system or plan.spec.system):
        lines.append("system:    at the head of the first prompt, for its makers advise against a system prompt")
    lines += [f"server:    {engine.service}"] if engine.service else []
    return lines + _listed("notes:", (*facts.notes, *plan.spec.notes))


def threads_words(plan: Plan) -> str:
    """Return with how many threads a plan computes, to stand behind its engine; empty for what runs elsewhere."""
    return f" · {plan.threads} thread{'s' * (plan.threads != 1)}" if plan.threads else ""


def think_words(engine: Engine) -> str:
    """Return the thinking that applies, as it is written, with how far it goes here."""
    think = engine.thinking()
    word = think.word or ("auto" if engine.patience_s is not None else "max")
    limit = limit_words(think, engine.plan)
    return f"{word}: {limit}" if limit else word


def unused_thinking(engine: Engine) -> str | None:
    """Return that a limit of thinking was given to a model that does not think; None where it is of use."""
    think = engine.thinking()
    if engine.spec.thinks or think.mode != "open":
        return None
    return f"{engine.spec.id} has no thinking of its own: --think {think.word} changes nothing"


def unused_early_exit(engine: Engine) -> str | None:
    """Return that early exit was asked for where no answer can be tried beside a thought; None where it is of use."""
    if not engine.settings.early_exit:
        return None
    plan = engine.plan
    if not engine.spec.thinks:
        return f"{engine.spec.id} has no thinking of its own: --early-exit changes nothing"
    if engine.thinking().mode == "off":
        return "thinking is off: --early-exit changes nothing"
    if "fork" not in engine.facts.capabilities:
        return f"{plan.backend} on {plan.device} can't try an answer beside the thinking: --early-exit changes nothing"
    return None


def chosen_settings(settings: Settings) -> dict[str, str]:
    """Return the settings that are not as they come, by name."""
    given = {**asdict(settings), **asdict(settings.sampling), "think": settings.think.word}
    usual = {**asdict(Settings()), **asdict(Settings().sampling), "think": Settings().think.word}
    return {name: str(value) for name, value in given.items() if name != "sampling" and value != usual[name]}


def sampling_words(sampling: Sampling) -> str:
    """Return the sampling fields that do something."""
    if sampling.temperature == 0.0:
        penalties = {key: value for key, value in asdict(sampling).items() if "penalty" in key and value != OFF[key]}
        return ", ".join(["greedy (temperature 0)", *(f"{key} {value:g}" for key, value in penalties.items())])
    values = {key: value for key, value in asdict(sampling).items() if value is not None and value != OFF[key]}
    return ", ".join(f"{key} {value:g}" for key, value in values.items()) or "temperature 0"


def noted_lines(noted: Sequence[tuple[float, str]]) -> list[str]:
    """Return what the engine decided while it ran, with the seconds since the start."""
    return [f"after {at_s:.1f} s:  {text}" for at_s, text in noted]


def timing_lines(reply: Reply) -> list[str]:
    """Return the timings in the words that fingers know from ollama."""
    usage, timings = reply.usage, reply.timings
    total_s = timings.load_s + timings.first_token_s + timings.decode_s
    generated = None if usage.think_tokens is None else usage.think_tokens + (usage.answer_tokens or 0)
    cached = f" ({usage.cached_tokens:,} of them cached)" if usage.cached_tokens else ""
    return [
        f"total duration:        {total_s:.3f} s",
        f"load duration:         {timings.load_s:.3f} s",
        f"prompt eval count:     {_count(usage.prompt_tokens)}{cached}",
        f"prompt eval duration:  {timings.prefill_s:.3f} s",
        f"prompt eval rate:      {timings.prefill_tps:.1f} tokens/s",
        f"first token after:     {timings.first_token_s:.3f} s",
        f"eval count:            {_count(generated)} (thinking {_count(usage.think_tokens, '')}{_inside(usage)})",
        *([_probe_line(usage)] if usage.probes else []),
        f"eval duration:         {timings.decode_s:.3f} s",
        f"eval rate:             {timings.decode_tps:.1f} tokens/s",
        *_drafts(usage),
        *([f"peak memory:           {gigabytes(timings.peak_rss_bytes)}"] if timings.peak_rss_bytes else []),
    ]


def endings(
    reply: Reply, think: Thinking, context_tokens: int, max_tokens: int | None, longest_tokens: int | None = None
) -> list[Note]:
    """Return why thinking and the reply ended before their time, and what to type; nothing for one that is whole.

    `longest_tokens` is the longest context that the model was made for; None: it is not known.
    """
    more = None
    if longest_tokens is None or context_tokens < longest_tokens:
        more = f"--ctx {min(2 * context_tokens, longest_tokens or sys.maxsize)}"
    full = Note(f"the context of {context_tokens:,} tokens is full: the reply was cut", more)
    notes = [
        _thinking_end(reply, think, more, max_tokens),
        full if reply.finish == "context" else _reply_end(reply, max_tokens),
    ]
    return [note for note in notes if note is not None]


def _thinking_end(reply: Reply, think: Thinking, more_context: str | None, max_tokens: int | None) -> Note | None:
    words = cut_words(reply.cut, think)
    is_said = (reply.cut, reply.finish) in (("max_tokens", "length"), ("context", "context"))
    if not words or is_said:
        return None
    text = f"thinking was {words}"
    match reply.cut:
        case "budget" | "time":
            return Note(text, _more_thinking(think), is_warning=False)
        case "context":
            return Note(text, more_context)
        case "max_tokens":
            return Note(text, f"--max-tokens {2 * (max_tokens or 1024)}")
        case "loop":
            return Note(text, REPEATS_LESS)
        case _:
            return Note(text, is_warning=False)


def _more_thinking(think: Thinking) -> str:
    """Return what to type for more of it: the next word, or twice the limit."""
    if think.max_tokens is not None and think.word == str(think.max_tokens):
        return f"--think {2 * think.max_tokens}"
    if think.max_s is not None and think.word not in ("", "auto", "on"):
        return f"--think {2 * think.max_s:g}s"
    return f"--think {NEXT_WORDS.get(think.word, 'max')}"


def _reply_end(reply: Reply, max_tokens: int | None) -> Note | None:
    match reply.finish:
        case "length":
            what = "thinking" if not reply.answer else "the answer" if reply.cut != "max_tokens" else "the reply"
            return Note(f"{what} was cut at {max_tokens:,} tokens", f"--max-tokens {2 * (max_tokens or 1024)}")
        case "loop":
            return Note("the answer repeated itself and was stopped", REPEATS_LESS)
        case "empty":
            return Note("the model ended without an answer", "--no-think" if reply.thinking else "--temp 0.6")
        case _:
            return None


def lowered(started: Started, think: Thinking, max_tokens: int | None, longest_tokens: int) -> Note | None:
    """Return that there was room for less thinking than was asked for, or for none; None where it was as asked.

    `longest_tokens` is the longest context that the model was made for.
    """
    if think.mode != "open" or think.max_tokens == 0:
        return None
    if started.think_state == "closed":
        return Note(f"the model's chat template closes thinking: --think {think.word} changes nothing")
    if think.max_tokens is None or started.think_tokens is None or started.think_tokens >= think.max_tokens:
        return None
    text = f"there was room for {started.think_tokens:,} of the {think.max_tokens:,} tokens of thinking asked for"
    if max_tokens is not None and max_tokens < started.context_tokens - (started.prompt_tokens or 0):
        return Note(text, f"--max-tokens {max_tokens + think.max_tokens}")
    if started.context_tokens >= longest_tokens:
        return Note(f"{text}: this model's context is {longest_tokens:,} tokens")
    return Note(text, f"--ctx {min(2 * started.context_tokens, longest_tokens)}")


def outgrown(plan: Plan, reply: Reply) -> str | None:
    """Return what an embedded model is, where it refused or was out of its depth; None otherwise."""
    if not plan.spec.embedded:
        return None
    refuses = bool(plan.spec.refusal) and reply.answer.strip().startswith(plan.spec.refusal or "")
    is_cramped = reply.finish == "context" and plan.context_tokens < (plan.spec.context_tokens or 0)
    if is_cramped or (not refuses and reply.finish not in ("context", "loop", "empty")):
        return None
    return (
        f"{plan.spec.id} is a toy of {(plan.spec.parameters or 0) / 1e6:.1f} million parameters that ships inside slm; "
        "it knows sums, weighing and small word problems"
    )


def better_line(better: ModelSpec, prompt: str, *, is_here: bool) -> str:
    """Return what to type to ask a larger model the same, or to see how it would run where it is not here yet."""
    if not is_here:
        return f"slm plan {better.id}"
    return f"slm run {better.id} {quote(prompt) if len(prompt) <= 60 and chr(10) not in prompt else '...'}"


def in_chat(hint: str) -> str:
    """Return a hint of `ending` as it is typed inside a chat."""
    flag, _, value = hint.partition(" ")
    match flag:
        case "--no-think":
            return "/think off"
        case "--think":
            return f"/think {value}"
        case "--max-tokens":
            return f"/set max_tokens {value}"
        case "--temp":
            return f"/set temperature {value}"
        case "-o":
            return "/set " + value.replace("=", " ", 1)
        case _:
            return "/drop removes the oldest turn, /clear all"


def _count(tokens: int | None, unit: str = " tokens") -> str:
    return "unknown" if tokens is None else f"{tokens:,}{unit}"


def _probe_line(usage: Usage) -> str:
    """Return how often an answer was tried while it thought, and what that took."""
    return f"answers tried:         {usage.probes:,} probe{'s' * (usage.probes != 1)}, {_count(usage.probe_tokens)}"


def _inside(usage: Usage) -> str:
    """Return what of the thinking were tags and what was put in for the model, where there was any."""
    parts = ((usage.tag_tokens, "tags"), (usage.injected_tokens, "injected"))
    return "".join(f", {count:,} of them {what}" for count, what in parts if count)


def _drafts(usage: Usage) -> list[str]:
    """Return how many tokens were guessed ahead and how many of them were right, where any were."""
    if not usage.drafted_tokens:
        return []
    return [f"speculation:           drafted {usage.drafted_tokens:,}, kept {usage.accepted_tokens or 0:,}"]


def _listed(head: str, lines: tuple[str, ...]) -> list[str]:
    return [f"{head if at == 0 else '':<11}{line}" for at, line in enumerate(lines)]
