"""`slm run --samples N [--vote]`: one prompt answered several times at once, shown, counted, kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slm_local import notes
from slm_local.cli.answering import Teller
from slm_local.cli.ballots import JsonLinesSamples, JsonSamples, PlainSamples
from slm_local.cli.render import DIM, YELLOW
from slm_local.cli.stream import ANSWER_NOW
from slm_local.cli.views import Subject
from slm_local.cli.watching import Sampled, SamplesView, watch
from slm_local.engine import Engine
from slm_local.errors import UsageError
from slm_local.forecast.thinking import limit_words
from slm_local.generation import Control
from slm_local.samples import MAX_SAMPLES, TEMPERATURE, VOTERS, Sample, seeds_from
from slm_local.samples.sentences import outcome, short, standing
from slm_local.session import ChatSession
from slm_local.system import can_type_lines, signalled


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """How many samples were asked for, and whether they vote."""

    count: int
    votes: bool


def wanted(samples: str | None, *, votes: bool) -> Samples | None:
    """Return what `--samples` and `--vote` ask for, None without either. Errors: `UsageError`."""
    if samples is None:
        return Samples(count=VOTERS, votes=True) if votes else None
    if not samples.strip().isascii() or not samples.strip().isdecimal() or not 1 <= int(samples) <= MAX_SAMPLES:
        said = f"--samples takes a number from 1 to {MAX_SAMPLES}, not {samples!r}"
        raise UsageError(said, hint=f"--samples {VOTERS}")
    return Samples(count=int(samples), votes=votes)


def sampled(teller: Teller, engine: Engine, session: ChatSession, subject: Subject, asked: Samples) -> Sampled:
    """Have a prompt answered several times, show it and say what came of it. Its error is left to the caller."""
    control = Control()
    seeds = seeds_from(engine.settings.sampling.seed, asked.count)
    _say_variety(teller, engine, seeds)
    hears_keys = engine.spec.thinks and engine.thinking().mode != "off" and can_type_lines()
    view = _view(teller, engine, subject, asked, hears_keys=hears_keys)
    pace = teller.pace(engine)
    messages = session.sample(subject.prompt, seeds, stops_early=asked.votes, control=control)
    with signalled(control.end_thinking):
        shown = watch(messages, view, control, asked=asked.count, pace=pace, hears_keys=hears_keys)
    if teller.flags.verbose:
        _say_details(teller, shown)
    _say_outcome(teller, engine, session, shown)
    return shown


def _view(teller: Teller, engine: Engine, subject: Subject, asked: Samples, *, hears_keys: bool) -> SamplesView:
    terminal, is_quiet = teller.terminal, teller.flags.quiet
    shows_thinking = not engine.settings.hide_thinking
    match teller.form:
        case "json":
            return JsonSamples(terminal, subject)
        case "jsonl":
            return JsonLinesSamples(terminal, subject)
    if not terminal.out_is_rich:
        return PlainSamples(
            terminal, asked=asked.count, votes=asked.votes, shows_thinking=shows_thinking, is_quiet=is_quiet
        )
    from slm_local.cli.columns import ColumnsView

    each = limit_words(engine.thinking(), replace(engine.plan, expected_decode_tps=None)) if engine.spec.thinks else ""
    return ColumnsView(
        terminal,
        subject.model,
        asked=asked.count,
        votes=asked.votes,
        shows_thinking=shows_thinking,
        limit=" · ".join(filter(None, (each and f"each {each}", ANSWER_NOW if hears_keys else ""))),
        is_quiet=is_quiet,
    )


def _say_variety(teller: Teller, engine: Engine, seeds: Sequence[int]) -> None:
    """Say what makes the samples differ, where nobody asked for it."""
    if teller.flags.quiet:
        return
    if engine.sampling().temperature == 0.0 and len(seeds) > 1:
        told = f"{engine.spec.id} takes the likeliest token unless asked: its samples are drawn at temperature"
        teller.terminal.say(f"{told} {TEMPERATURE} · --temp X", DIM)
    if engine.settings.sampling.seed is None:
        drawn = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
        teller.terminal.say(f"{drawn}, drawn; again with --seed {seeds[0]}", DIM)


def _say_details(teller: Teller, shown: Sampled) -> None:
    """Say for `-v` what each sample took, and all together."""
    for each in shown.vote.samples:
        usage, timings = each.reply.usage, each.reply.timings
        parts = (
            f"sample {each.number + 1}: seed {each.seed}",
            f"{each.tokens:,} tokens, {usage.think_tokens or 0:,} of thinking",
            f"first after {timings.first_token_s:.2f} s",
            f"{usage.cached_tokens or 0:,} of {usage.prompt_tokens or 0:,} prompt tokens cached",
            each.reply.finish,
            *([] if each.reply.cut == "none" else [f"cut: {each.reply.cut}"]),
            *([] if each.vote is None else [f"→ {short(each.vote)}"]),
        )
        teller.terminal.say(" · ".join(parts), DIM)
    tokens = sum(each.tokens for each in shown.vote.samples)
    took_s = max((t.first_token_s + t.decode_s for t in (each.reply.timings for each in shown.vote.samples)), default=0)
    speed = f", {tokens / took_s:,.1f} tokens/s" if took_s else ""
    teller.terminal.say(f"together: {tokens:,} tokens in {took_s:.2f} s{speed}", DIM)


def _say_outcome(teller: Teller, engine: Engine, session: ChatSession, shown: Sampled) -> None:
    """Say how it went, why samples ended before their time, and where the others are kept."""
    terminal, vote = teller.terminal, shown.vote
    if shown.error is not None and not vote.ballots:
        return
    is_doubtful = vote.is_tied or not vote.ballots
    if not teller.flags.quiet or is_doubtful:
        terminal.say(outcome(vote), YELLOW if is_doubtful else DIM)
    if not teller.flags.quiet and not terminal.out_is_rich and len(vote.ballots) > 1:
        terminal.say(standing(vote), DIM)
    _say_endings(teller, engine, [each for each in vote.samples if each.reply.finish not in ("cancelled", "error")])
    if session.chat is not None and len(vote.samples) > 1 and not teller.flags.quiet:
        terminal.say(f"all {len(vote.samples)} are kept · slm history show {session.chat} --all", DIM)


def _say_endings(teller: Teller, engine: Engine, ended: Sequence[Sample]) -> None:
    """Say why thinking and replies ended before their time, each reason once with how many it holds for."""
    think, context, limit = engine.thinking(), engine.plan.context_tokens, engine.settings.max_tokens
    longest = engine.facts.trained_context_tokens
    counts = Counter(note for each in ended for note in notes.endings(each.reply, think, context, limit, longest))
    for note, count in counts.items():
        teller.terminal.say(f"{count} of {len(ended)} samples: {note.text}", YELLOW if note.is_warning else DIM)
        if note.hint:
            teller.terminal.hint(note.hint)
