"""Measure what early exit saves and costs: python docs/benchmarks/early_exit.py

Held-out problems of the embedded model's generator, greedy, each thought to its end once and then under every rule: so
many equal answers in a row, tried every so many tokens. A row says how many thoughts were ended, what share of all
thinking that saved, how many tokens the probes took for it, what is left when these are counted against it, how often
the final answer is that of the full thought, and how often either is right. Neither tokens nor answers depend on how
busy the machine is.

A token of a probe is no token of thinking: what a probe reads goes in one batch, what it writes shares the steps of the
thinking. "Net" counts them all the same, as where a batch costs as much as its rows do.

Another model that thinks can be asked (`--model r1-1.5b`): the problems are small sums, comparisons and weighings.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from slm_local.answers import final_answer, same_answer
from slm_local.backends import backend_named
from slm_local.config import Settings
from slm_local.driver import Driver
from slm_local.engine import Engine, choose
from slm_local.generation import Control, Done, LoadSettings, Message, Reply, Thinking
from slm_local.governor.convergence import ExitRule
from slm_local.tiny import REASONER
from slm_local.tiny.heldout import FAMILIES, Trial, draw_trials

SEED = 7
THREADS = 1
"""Enough for a model of this size, and not slowed by what else runs."""
SAME_ANSWERS = (2, 3, 5)
SPACINGS = (
    ExitRule(least_spacing=16, most_spacing=16),
    ExitRule(least_spacing=32, most_spacing=32),
    ExitRule(least_spacing=64, most_spacing=64),
    ExitRule(least_spacing=100, most_spacing=100),
    ExitRule(least_spacing=16, spacing_part=4),
    ExitRule(least_spacing=16, spacing_part=2),
    ExitRule(least_spacing=32, spacing_part=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one rule gave on one engine."""

    engine: str
    rule: ExitRule
    problems: int
    ended: int
    """Thoughts that were ended because their answer had settled."""
    full_think_tokens: float
    """Mean tokens of a full thought."""
    think_tokens: float
    """Mean tokens of a thought under the rule, without what was injected."""
    probes: float
    probe_tokens: float
    agreeing: int
    """Final answers that are the full thought's."""
    full_right: int
    right: int

    @property
    def saved(self) -> float:
        """Return the share of thinking that was saved, probes not counted."""
        return 1.0 - self.think_tokens / self.full_think_tokens

    @property
    def net(self) -> float:
        """Return the share that is left when the probes' tokens count as thinking."""
        return 1.0 - (self.think_tokens + self.probe_tokens) / self.full_think_tokens


def problems(number: int) -> list[Trial]:
    """Return held-out problems, the same number of each kind, those it should refuse aside."""
    families = [family for family in FAMILIES if not family.startswith("refuse")]
    drawn = [draw_trials(family, -(-number // len(families)), SEED) for family in families]
    return [trial for row in zip(*drawn, strict=True) for trial in row][:number]


def driver_for(engine: Engine, rule: ExitRule) -> Driver:
    """Load the model of an engine that was not started, in this process, under a rule."""
    plan, spec = engine.plan, engine.plan.spec
    assert plan.variant.path is not None
    driver = Driver(backend_named(plan.backend), exit_rule=rule)
    settings = LoadSettings(
        backend=plan.backend,
        model_path=plan.variant.path,
        context_tokens=plan.context_tokens,
        threads=THREADS,
        tags=spec.tags,
        think=spec.think,
        template=spec.template,
        bridge=spec.bridge,
        device=plan.device,
    )
    driver.load(settings, Control(), lambda fraction: None)
    return driver


def replies(engine: Engine, rule: ExitRule | None, trials: Sequence[Trial]) -> list[Reply]:
    """Ask every problem under a rule; None: think to the end."""
    driver = driver_for(engine, rule or ExitRule())
    found = [ask(engine, driver, trial, early_exit=rule is not None) for trial in trials]
    driver.close()
    return found


def ask(engine: Engine, driver: Driver, trial: Trial, *, early_exit: bool) -> Reply:
    """Return the reply to one problem."""
    system = [Message(role="system", content=trial.prompt.system)] if trial.prompt.system else []
    turns = [*system, Message(role="user", content=trial.prompt.text)]
    request = engine.request(turns, think=Thinking(mode="open", word="max"))
    request = replace(request, early_exit=early_exit, sampling=replace(request.sampling, seed=SEED))
    for event in driver.run(request):
        if isinstance(event, Done):
            return event.reply
    raise AssertionError("no last event")


def thought_tokens(reply: Reply) -> int:
    """Return the tokens of thinking that the model wrote, tags not counted."""
    usage = reply.usage
    return (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0)


def same(left: str, right: str) -> bool:
    """Tell whether two replies come to the same final answer."""
    first, second = final_answer(left), final_answer(right)
    return first is not None and second is not None and same_answer(first, second)


def row(engine: str, rule: ExitRule, trials: Sequence[Trial], full: Sequence[Reply], found: Sequence[Reply]) -> Row:
    """Compare the replies under a rule with the full ones."""
    return Row(
        engine=engine,
        rule=rule,
        problems=len(trials),
        ended=sum(reply.cut == "converged" for reply in found),
        full_think_tokens=statistics.mean(map(thought_tokens, full)),
        think_tokens=statistics.mean(map(thought_tokens, found)),
        probes=statistics.mean(reply.usage.probes or 0 for reply in found),
        probe_tokens=statistics.mean(reply.usage.probe_tokens or 0 for reply in found),
        agreeing=sum(same(a.answer, b.answer) for a, b in zip(full, found, strict=True)),
        full_right=sum(same(a.answer, t.answer) for a, t in zip(full, trials, strict=True)),
        right=sum(same(a.answer, t.answer) for a, t in zip(found, trials, strict=True)),
    )


def spacing_words(rule: ExitRule) -> str:
    """Return a rule's spacing as the table says it."""
    if rule.least_spacing == rule.most_spacing:
        return str(rule.most_spacing)
    return f"{rule.least_spacing} to {rule.most_spacing}, 1/{rule.spacing_part} of the thought"


def rows(engine_name: str, model: str, number: int) -> Iterator[Row]:
    """Measure every rule on one engine; print as it goes."""
    settings = Settings(backend=engine_name)  # type: ignore[arg-type]
    engine, trials = Engine(choose(model, settings=settings)), problems(number)
    full = replies(engine, None, trials)
    for spacing in SPACINGS:
        for count in SAME_ANSWERS:
            rule = replace(spacing, same_answers=count)
            found = row(engine_name, rule, trials, full, replies(engine, rule, trials))
            print(
                f"| {engine_name} | {spacing_words(rule)} | {count} | {found.ended / number:.0%} | {found.saved:.1%} "
                f"| {found.probes:.1f} | {found.probe_tokens:.0f} | {found.net:.1%} | {found.agreeing / number:.1%} "
                f"| {found.full_right / number:.1%} | {found.right / number:.1%} |",
                flush=True,
            )
            yield found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=REASONER, help="a model that thinks, as slm run takes it")
    parser.add_argument("--problems", type=int, default=90)
    parser.add_argument("--engines", nargs="+", default=["llamacpp", "openvino"], choices=["llamacpp", "openvino"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SLM_HOME"] = os.environ.get("SLM_HOME", home)
        print(
            "| engine | tried every | equal answers | ended | thinking saved | probes | their tokens | net "
            "| same answer | right in full | right |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        found = [each for name in given.engines for each in rows(name, given.model, given.problems)]
        print(json.dumps([asdict(each) for each in found]))


if __name__ == "__main__":
    main()
