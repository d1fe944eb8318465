"""`slm bench MODEL`: how fast a model is here beside what the memory allows, or which of its plans is fastest."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from slm_local.bench import (
    Bench,
    Limit,
    Race,
    Racer,
    Spread,
    bench,
    calibrate,
    raceable,
)
from slm_local.bench.curves import ROOM_TOKENS, depths_of
from slm_local.cli.answering import registry_here
from slm_local.cli.curves import number as _number
from slm_local.cli.curves import write_shape
from slm_local.cli.measures import bench_values, by_speed, name_of, progress, race_values
from slm_local.cli.options import SHOWN, EngineFlags, takes
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.cli.runs import (
    calm_remark,
    compared,
    comparison_values,
    keep_run,
    list_runs,
    run_to_compare,
    write_comparison,
)
from slm_local.engine import Choice, Engine, choose, mean
from slm_local.errors import UsageError
from slm_local.forecast.plans import machine_line
from slm_local.hardware import Hardware, probe
from slm_local.measured import engine_version
from slm_local.model import Plan
from slm_local.notes import threads_words
from slm_local.registry import Registry
from slm_local.sanitize import shell_word
from slm_local.selector import duration, gigabytes
from slm_local.selector.rules import READ_HEAVY, THINK_HEAVY


@takes(EngineFlags)
def command(
    context: typer.Context,
    flags: EngineFlags,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False)] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="race every way to run it; the choice heeds it", rich_help_panel=SHOWN)
    ] = False,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, max=100, help="measure so often", rich_help_panel=SHOWN)
    ] = 3,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth",
            metavar="N",
            min=0,
            help="deepest context to decode at, in tokens",
            rich_help_panel=SHOWN,
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="RUN", help="a run's number, or last", rich_help_panel=SHOWN, show_default=False
        ),
    ] = None,
    runs: Annotated[bool, typer.Option("--runs", help="list what was measured before", rich_help_panel=SHOWN)] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object", rich_help_panel=SHOWN)] = False,
) -> int:
    """Measure how fast a model runs here: load, first token, prefill, decode, and what the memory would allow.

    Every run is kept; --runs lists them and --compare shows the new figures beside those of one.

    With --calibrate every way to run it whose files are here is raced for a few seconds, and what was measured is kept:
    from then on the fastest is chosen.
    """
    terminal: Terminal = context.obj
    if runs:
        named = None if model is None else mean(model, registry=registry_here(terminal)).spec.id
        return list_runs(terminal, named, json=json)
    if model is None:
        raise UsageError("which model shall be measured?", hint="slm bench tiny-reasoner")
    if calibrate and (compare is not None or depth is not None):
        raise UsageError(
            "--calibrate races and keeps no run: it goes with neither --compare nor --depth",
            hint=f"slm bench {shell_word(model)} --calibrate",
        )
    registry = registry_here(terminal)
    settings = flags.settings(registry.resolve(model).settings)
    # one by one: what a step costs is asked for, and a random prompt's text says nothing of how guesses fare
    choice = choose(model, settings=replace(settings, speculation=False), registry=registry)
    for note in choice.notes:
        terminal.say(note, DIM)
    plans = raceable(choice)
    hardware = probe(devices=any(plan.device not in ("cpu", "remote") for plan in plans))
    if calibrate:
        if flags.threads is not None:
            raise UsageError(
                "--calibrate measures how models run without other wishes: --threads can't be kept",
                hint=f"slm bench {shell_word(model)} --threads {flags.threads}",
            )
        return _calibrate(terminal, choice, hardware, registry, json=json)
    _check_depth(depth, choice.plans[0])
    before = None if compare is None else run_to_compare(compare, choice.plans[0].spec.id)
    done = bench(Engine(choice), hardware, rounds=rounds, deepest=depth, tell=progress(terminal))
    values = bench_values(done)
    values["remarks"] += calm_remark(values)
    ratios = None if before is None else compared(before, values)
    number = keep_run(terminal, values)
    if json:
        terminal.json({**values, "run": number, "compared": ratios and comparison_values(ratios)})
    else:
        _write_bench(terminal, done, hardware)
        if ratios is not None:
            write_comparison(terminal, ratios)
    _say_remarks(terminal, values["remarks"][1 if done.limit.remark else 0 :])
    if number is not None:
        terminal.say(f"kept as run {number}: slm bench {shell_word(model)} --compare {number}", DIM)
    return 0


def _check_depth(depth: int | None, plan: Plan) -> None:
    most = max(depths_of(plan.context_tokens, plan.context_tokens - ROOM_TOKENS), default=0)
    if depth is not None and depth > most:
        raise UsageError(
            f"the context of {plan.context_tokens:,} tokens has room for a depth of {most:,}",
            hint=f"--ctx {depth + ROOM_TOKENS}, or --depth {most}",
        )


def _calibrate(terminal: Terminal, choice: Choice, hardware: Hardware, registry: Registry, *, json: bool) -> int:
    done = calibrate(choice, hardware, tell=progress(terminal))
    best = choose(choice.reference, settings=choice.settings, registry=registry).plans[0]
    if json:
        terminal.json(race_values(done, best))
    else:
        write_race(terminal, done, best)
    if len(done.racers) == 1:
        terminal.say("there is no other way to run it with what is here: nothing was decided", YELLOW)
    _say_remarks(terminal, done.remarks)
    return 0


def _write_bench(terminal: Terminal, done: Bench, hardware: Hardware) -> None:
    plan = done.plan
    version = engine_version(plan.backend)
    engine = f"{plan.backend} {version}".strip()
    terminal.line(f"{plan.spec.id} {plan.variant.quant} · {engine} on {plan.device}{threads_words(plan)}")
    terminal.line(machine_line(replace(hardware, read_gb_s=done.limit.read_gb_s)))
    terminal.line()
    rows = [
        (
            "load",
            *_seconds(done.spread("load_s")),
            "process, runtime and weights" if plan.threads else "finding the server",
        ),
        ("first token, cold", *_seconds(done.spread("cold_s")), f"load and a prompt of {done.prompt_tokens} tokens"),
        ("first token, warm", *_seconds(done.spread("warm_s")), "the same prompt, in the KV cache"),
        ("prefill", *_rates(done.spread("prefill_tps")), f"{done.prompt_tokens} new tokens"),
        ("decode", *_rates(done.spread("decode_tps")), f"{done.decoded_tokens} tokens"),
    ]
    terminal.table(rows, head=("", "median", "least", "most", f"of {_times(len(done.rounds))}"))
    write_shape(terminal, done.shape)
    terminal.line()
    terminal.paragraph(_limit_line(done.limit), rest="  ")
    terminal.paragraph(_energy_line(done), rest="  ")


def _limit_line(limit: Limit) -> str:
    if limit.decode_tps is None or limit.share is None or limit.bytes_per_token is None:
        return f"limit: not known; {limit.remark}"
    read = f"{gigabytes(limit.bytes_per_token)} a token at {limit.read_gb_s:.0f} GB/s measured here"
    return f"limit: {_number(limit.decode_tps)} tok/s ({read}); decode reaches {limit.share:.0%} of it"


def _energy_line(done: Bench) -> str:
    if done.tokens_per_joule is None:
        reasons = [each.energy.reason for each in done.rounds if each.energy.reason]
        return f"energy: not known; {reasons[0] if reasons else 'its counter stood still'}"
    return f"energy: {done.tokens_per_joule:.2f} tokens a joule of the whole machine while it decoded"


def write_race(terminal: Terminal, done: Race, best: Plan) -> None:
    """Write a race as a table, fastest thinker first, and which plan is chosen from now on."""
    rows = [_race_row(racer) for racer in by_speed(done)]
    lengths = [f"{prompt:,} + {reply:,}" for prompt, reply in (READ_HEAVY, THINK_HEAVY)]
    terminal.table(rows, head=("", "prefill", "decode", "first token", *lengths))
    for racer in done.racers:
        if racer.failure is not None:
            terminal.say(f"{name_of(racer.plan)} dropped out: {racer.failure.message}", YELLOW)
    terminal.line()
    terminal.line(f"chosen from now on: {name_of(best)}")
    for reason in best.reasons:
        terminal.paragraph(reason, first="  ", rest="    ")


def _race_row(racer: Racer) -> tuple[str, ...]:
    measured = racer.measurement
    if measured is None:
        return (name_of(racer.plan), *["-"] * 5)
    return (
        name_of(racer.plan),
        f"{_number(measured.prefill_tps)} tok/s",
        f"{_number(measured.decode_tps)} tok/s",
        f"{measured.first_token_s:.2f} s",
        *(duration(measured.seconds(*load)) for load in (READ_HEAVY, THINK_HEAVY)),
    )


def _say_remarks(terminal: Terminal, remarks: tuple[str, ...]) -> None:
    for remark in remarks:
        terminal.say(remark, YELLOW)


def _seconds(spread: Spread) -> tuple[str, str, str]:
    return f"{spread.median:.2f} s", f"{spread.low:.2f}", f"{spread.high:.2f}"


def _rates(spread: Spread) -> tuple[str, str, str]:
    return f"{_number(spread.median)} tok/s", _number(spread.low), _number(spread.high)


def _times(rounds: int) -> str:
    return "one round" if rounds == 1 else f"{rounds} rounds"
