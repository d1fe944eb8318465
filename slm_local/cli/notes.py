"""What slm says beside an answer: the plan before it, why it ended, timings after it, a better model for the job."""

from __future__ import annotations

from dataclasses import asdict
from shlex import quote

from slm_local.config import Settings
from slm_local.engine import Engine
from slm_local.generation import Reply, Sampling
from slm_local.model import ModelSpec, Plan
from slm_local.selector import gigabytes

OFF = asdict(Sampling())


def plan_lines(engine: Engine) -> list[str]:
    """Return the plan with its reasons and the applied defaults, for `-v`."""
    plan, facts = engine.plan, engine.facts
    sampling = engine.sampling(engine.settings.think)
    threads = f"{plan.threads} thread{'s' * (plan.threads != 1)}"
    lines = [
        f"model:     {plan.spec.id} · {plan.variant.quant} · {plan.variant.path or plan.variant.repo or ''}",
        f"engine:    {plan.backend} on {plan.device} · {threads} · context {facts.context_tokens:,}",
        *_listed("because:", plan.reasons),
        f"sampling:  {sampling_words(sampling)}",
        f"think:     {engine.settings.think}",
    ]
    return lines + _listed("notes:", (*facts.notes, *plan.spec.notes))


def chosen_settings(settings: Settings) -> dict[str, str]:
    """Return the settings that are not as they come, by name."""
    given = {**asdict(settings), **asdict(settings.sampling)}
    usual = {**asdict(Settings()), **asdict(Settings().sampling)}
    return {name: str(value) for name, value in given.items() if name != "sampling" and value != usual[name]}


def sampling_words(sampling: Sampling) -> str:
    """Return the sampling fields that do something."""
    if sampling.temperature == 0.0:
        penalties = {key: value for key, value in asdict(sampling).items() if "penalty" in key and value != OFF[key]}
        return ", ".join(["greedy (temperature 0)", *(f"{key} {value:g}" for key, value in penalties.items())])
    values = {key: value for key, value in asdict(sampling).items() if value is not None and value != OFF[key]}
    return ", ".join(f"{key} {value:g}" for key, value in values.items()) or "temperature 0"


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
        f"eval count:            {_count(generated)} (thinking {_count(usage.think_tokens, '')})",
        f"eval duration:         {timings.decode_s:.3f} s",
        f"eval rate:             {timings.decode_tps:.1f} tokens/s",
        f"peak memory:           {gigabytes(timings.peak_rss_bytes)}",
    ]


def ending(reply: Reply, context_tokens: int, max_tokens: int | None) -> tuple[str, str] | None:
    """Return why a reply ended before its time and what to type, or None for one that is whole."""
    match reply.finish:
        case "length":
            what = "thinking" if reply.cut == "max_tokens" else "the answer"
            return f"{what} was cut at {max_tokens:,} tokens", f"--max-tokens {2 * (max_tokens or 1024)}"
        case "context":
            return f"the context of {context_tokens:,} tokens is full: the reply was cut", f"--ctx {2 * context_tokens}"
        case "loop":
            return "the model repeated itself and was stopped", "-o repeat_penalty=1.1"
        case "empty":
            return "the model ended without an answer", "--no-think" if reply.thinking else "--temp 0.6"
        case _:
            return None


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


def _listed(head: str, lines: tuple[str, ...]) -> list[str]:
    return [f"{head if at == 0 else '':<11}{line}" for at, line in enumerate(lines)]
