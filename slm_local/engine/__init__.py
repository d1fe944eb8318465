"""Opens a model in a child process of its own and streams from it.

`open_model` is the way in: reference, plan, header check, child, load. An `Engine` whose child died starts a new
one at the next request. The process that uses an engine never imports a runtime.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from slm_local.config import SamplingOverrides, Settings, load_settings
from slm_local.engine.choice import Choice, Meaning, choose, mean, ranked
from slm_local.engine.identity import file_identity
from slm_local.engine.warming import Warming
from slm_local.errors import DownloadFailed, SlmError, UsageError
from slm_local.fit import read_bytes_per_token, share_key
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    Message,
    ModelFacts,
    Reply,
    Sampling,
    StateMoved,
    StateOrder,
    StreamEvent,
    Thinking,
    TokenOrder,
    Tokens,
)
from slm_local.gguf_header import checked_header
from slm_local.measured import LEAST_TOKENS, remember_reply
from slm_local.metrics import Collector
from slm_local.model import ModelSpec, Plan, SamplingDefaults
from slm_local.paths import make_folder, paths
from slm_local.registry import Registry, load_registry
from slm_local.selector import does_not_fit
from slm_local.system import is_saving_power, kept_awake, largest_program
from slm_local.thinking import patient
from slm_local.worker import Threads, Worker, ahead

if TYPE_CHECKING:
    from slm_local.engine.supply import Confirm, OnFetch

SILENCE_S = 0.5
"""After so long without a sign, the person is told what is going on."""

Status = Callable[[str], None]

__all__ = [
    "Choice",
    "Engine",
    "Meaning",
    "Warming",
    "choose",
    "mean",
    "open_model",
    "ranked",
    "serving",
    "template_given",
]


def open_model(
    reference: str,
    *,
    settings: Settings | None = None,
    registry: Registry | None = None,
    on_status: Status | None = None,
    confirm: Confirm | None = None,
    on_fetch: OnFetch | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    control: Control | None = None,
) -> Engine:
    """Open a model by any reference the command line takes; blocks until it is loaded, fetched first if it must be.

    `settings` None reads config.toml, SLM_* variables and what hangs on the reference. `on_status` is told what goes
    on after half a second of silence. `confirm` is asked before a download begins (None: it begins at once), `on_fetch`
    told how far it is. `on_plan` is told how it will run before it is fetched or loaded here, and may raise. Errors:
    those of `choose`, `DoesNotFit`, `DownloadFailed`, `EngineMissing`, `ModelBroken`, `WorkerCrashed`, `Interrupted`
    when `control` was cancelled.
    """
    control = control or Control()
    registry = registry or load_registry(paths().config / "models.toml")
    settings = settings or load_settings({}, reference_settings=registry.resolve(reference).settings)
    served = serving(reference, settings=settings, registry=registry, control=control, on_status=on_status)
    if isinstance(served, Engine):
        return served
    chosen = choose(reference, settings=settings, registry=registry)
    if not chosen.plans[0].fits:
        raise does_not_fit(chosen.plans[0], largest_program())
    if on_plan is not None:
        on_plan(chosen.plans[0])
    if chosen.plans[0].variant.path is None:
        from slm_local.engine.supply import supplied  # a start that fetches nothing does without all that downloads

        chosen = supplied(chosen, confirm=confirm, on_fetch=on_fetch, control=control)
        served = serving(reference, settings=settings, registry=registry, control=control, on_status=on_status)
        if isinstance(served, Engine):
            return served
    engine = Engine(chosen, on_status=on_status)
    engine.service = served
    try:
        engine.start(control)
    except BaseException:
        engine.close()
        raise
    return engine


def serving(
    reference: str, *, settings: Settings, registry: Registry, control: Control, on_status: Status | None = None
) -> Engine | str:
    """Return an engine that the user's server has open, or opens now; else why it does not, empty without a server.

    Where a model is to be kept and no server runs, one is started in the background. Blocks while the server opens the
    model. Errors: those of resolving the reference; `Interrupted`; `WorkerCrashed` where the server does not start.
    """
    if not settings.keep_alive_s and not paths().server_file.exists():
        return ""
    from slm_local.engine.attaching import attach  # sockets are for those who have a server

    return attach(reference, settings, registry, control, on_status or (lambda text: None))


class Engine:
    """An open model. A context manager; `close` ends its child, and a later request would start another."""

    def __init__(self, choice: Choice, *, on_status: Status | None = None) -> None:
        self.reference = choice.reference
        """As it was typed, but a path in full: kept with a conversation, it is read in another folder."""
        self.spec = choice.spec
        self.settings = choice.settings
        self.notes = choice.notes
        self.plan = _runnable(choice)
        self.system = choice.settings.system if choice.settings.system is not None else choice.spec.system
        self.load_s = 0.0
        self.patience_s: float | None = None
        """How long a person waits for thinking of which nobody said how long it may take; None: to its end."""
        self.remembers_speed = True
        """Whether replies tell forecasts how fast this engine reads; False where others compute beside it."""
        self.service = ""
        """Which server has it open, or why the user's server does not; empty where there is none."""
        self.load_settings = load_settings_of(self.plan, choice.settings)
        """What its child loads."""
        self._facts: ModelFacts | None = None
        self._on_status = on_status or (lambda text: None)
        self._told = ""
        self._compiles = False
        """Whether the load under way compiles the model for its device, which may take minutes once."""
        self._worker: Worker | None = None
        self._starting = threading.Lock()
        self._warming: Warming | None = None
        self._unreported_load_s = 0.0

    @property
    def facts(self) -> ModelFacts:
        """Return what the loaded model says of itself."""
        if self._facts is None:
            raise SlmError("the model is not loaded yet")
        return self._facts

    @property
    def running(self) -> Worker | None:
        """Return what speaks with its child; None while there is none."""
        worker = self._worker
        return worker if worker is not None and worker.is_alive else None

    @property
    def pid(self) -> int | None:
        """Return the child's process id, None while there is none."""
        worker = self.running
        return worker.pid if worker is not None else None

    def start(self, control: Control) -> None:
        """Start the child and load, unless it runs already; blocks. Errors: as `open_model`."""
        if self.running is not None:
            return
        begun = time.perf_counter()
        self.close()
        self._told = ""
        self._compiles = self.plan.backend == "openvino" and _will_compile(self.load_settings)
        backend, path = self.load_settings.backend, self.load_settings.model_path
        if backend == ahead.ELSEWHERE:
            ahead.end()
            self._worker = Worker(Threads())
        else:
            self._worker = ahead.take(make_folder(paths().logs), backend, path)
        self._facts = self._worker.load(self.load_settings, control, self._tell)
        ahead.remember(paths().cache, self.reference, backend, path)
        self.load_s = self._unreported_load_s = time.perf_counter() - begun

    def adopt(self, worker: Worker, facts: ModelFacts, load_s: float) -> None:
        """Use an engine that has this plan loaded, elsewhere; when it is gone, the next request starts a child."""
        self._worker, self._facts = worker, facts
        self.load_s = self._unreported_load_s = load_s
        self.remembers_speed = False

    def worker(self, control: Control) -> Worker:
        """Return what speaks with the child, which is started anew where it died; blocks. Errors: as `open_model`.

        For whoever passes requests on as they are; the engine's own preparation is not stopped for them.
        """
        with self._starting:
            self.start(control)
            assert self._worker is not None
            return self._worker

    def request(
        self, messages: Sequence[Message] | str, *, think: Thinking | None = None, max_tokens: int | None = None
    ) -> GenerationRequest:
        """Make a request with the user's settings over the model's defaults; a string is a single user turn.

        `think` None, or one in which nothing is asked for, is the settings', else the model's own.
        Errors: `UsageError` for a prompt of nothing but white space.
        """
        if isinstance(messages, str):
            if not messages.strip():
                raise UsageError("the prompt is empty", hint='slm run MODEL "What is 47 + 38?"')
            shown = [Message(role="system", content=self.system)] if self.system else []
            messages = [*shown, Message(role="user", content=messages)]
        asked = self.thinking(think)
        return GenerationRequest(
            messages=_in_user_turn(messages) if self.spec.advises_against_system else tuple(messages),
            sampling=self.sampling(asked),
            max_tokens=max_tokens or self.settings.max_tokens,
            stop=self.settings.stop,
            think=asked.mode,
            think_tokens=asked.max_tokens,
            think_s=asked.max_s,
            answer_reserve=self.settings.answer_reserve,
            has_loop_guard=self.settings.loop_guard,
            early_exit=self.settings.early_exit,
        )

    def thinking(self, asked: Thinking | None = None) -> Thinking:
        """Return the thinking that applies: as asked for, else as set, else as the model's entry says.

        It has a limit where one is given, or where somebody has no patience without one.
        """
        nothing = Thinking()
        choices = (asked or nothing, self.settings.think, self.spec.thinking)
        think = next((each for each in choices if each != nothing), nothing)
        if self.patience_s is None or think.mode == "off" or not self.spec.thinks or not self._can_end_thinking:
            return think
        plan = self.plan
        return patient(think, self.patience_s, decode_tps=plan.expected_decode_tps, context_tokens=plan.context_tokens)

    @property
    def _can_end_thinking(self) -> bool:
        """Return False for a server that is known to have no way to."""
        capabilities = self._facts.capabilities if self._facts is not None else ()
        return "chat" not in capabilities or "inject" in capabilities

    def sampling(self, think: Thinking | None = None) -> Sampling:
        """Return the sampling that applies: the model's defaults for this way of thinking under the user's own."""
        defaults = self.spec.sampling
        if self.thinking(think).mode == "off" and self.spec.sampling_no_think is not None:
            defaults = self.spec.sampling_no_think
        applied = _overlay(Sampling(), defaults)
        return _overlay(applied, self.settings.sampling)

    def stream(self, request: GenerationRequest | str, control: Control | None = None) -> Iterator[StreamEvent]:
        """Generate; yield events, the last of them `Done`, its timings by this process's clock.

        A child that died before is started anew first. Several threads may stream at once. Errors: `PromptTooLong`,
        `UsageError`, `WorkerCrashed`, ...
        """
        if isinstance(request, str):
            request = self.request(request)
        control = control or Control()
        if self._warming is not None:
            self._warming.stop()
        with self._starting:  # of several threads one starts the child and tells of the load
            self.start(control)
            assert self._worker is not None
            worker, load_s, self._unreported_load_s = self._worker, self._unreported_load_s, 0.0
        collector = Collector(load_s=load_s)
        with kept_awake(is_wanted=self.settings.keep_awake):
            for event in worker.stream(request, control):
                collector.feed(event)
                if isinstance(event, Done):
                    event = Done(reply=collector.reply())
                    if self.plan.backend == ahead.ELSEWHERE:  # what this process holds is not the model's
                        event = Done(reply=replace(event.reply, timings=replace(event.reply.timings, peak_rss_bytes=0)))
                    if self.remembers_speed:
                        self._remember_speed(event.reply)
                yield event

    def tokens(self, order: TokenOrder) -> Tokens:
        """Tokenize a text or a conversation as this model does, or return the texts of ids; replies go on meanwhile.

        A child that died before is started anew first. Errors: `UsageError`, `WorkerCrashed`, ...
        """
        return self.worker(Control()).tokens(order)

    def prepare(
        self,
        messages: Sequence[Message],
        *,
        think: Thinking | None = None,
        restore: Callable[[], StateMoved] | None = None,
    ) -> Warming | None:
        """Have what the next prompt will begin with read into the KV cache; returns at once.

        The last of the messages is the next prompt as far as it is known; its content may be empty. Any request ends
        it at once, and finds what was read by then. `restore` is called first, in its thread. None: it is not wanted,
        or no child runs.
        """
        worker = self.running
        if worker is None or not (self.settings.warm or restore):
            return None
        if self.plan.backend == ahead.ELSEWHERE:
            return None  # a server reads no prompt in advance
        if self._warming is not None:
            self._warming.stop()
        request = self.request(messages, think=think)
        self._warming = Warming(lambda control: worker.prepare(request, control), self._unwanted, restore)
        return self._warming

    def _unwanted(self) -> str:
        if not self.settings.warm:
            return "warm = false"
        return "the machine saves power" if is_saving_power() else ""

    @property
    def keeps_states(self) -> bool:
        """Return whether `save_state` and `restore_state` can do anything."""
        return self._facts is not None and "state" in self._facts.capabilities

    def save_state(
        self,
        path: Path,
        messages: Sequence[Message],
        *,
        think: Thinking | None,
        least_tokens: int,
        most_bytes: int,
        on_wait: Callable[[float], None],
    ) -> StateMoved:
        """Write to a file what the KV cache holds of the beginning that `prepare` reads for these messages; blocks.

        What can't be done is a note. On Ctrl-C the child is killed.
        """
        request = self.request(messages, think=think)
        try:
            order = StateOrder(
                path=str(path),
                model=self._identity(),
                request=request,
                least_tokens=least_tokens,
                most_bytes=most_bytes,
            )
            return self._move_state(order, on_wait)
        except OSError as error:
            return StateMoved(tokens=0, note=str(error))
        except KeyboardInterrupt:
            if self._worker is not None:
                self._worker.kill()
            raise

    def restore_state(self, path: Path) -> StateMoved:
        """Read a file that `save_state` wrote into the KV cache; blocks. What can't be done is a note."""
        try:
            return self._move_state(StateOrder(path=str(path), model=self._identity()), lambda waited_s: None)
        except OSError as error:
            return StateMoved(tokens=0, note=str(error))

    def _move_state(self, order: StateOrder, on_wait: Callable[[float], None]) -> StateMoved:
        worker = self.running
        if worker is None:
            return StateMoved(tokens=0, note="the engine is gone")
        return worker.move_state(order, on_wait)

    def _identity(self) -> str:
        assert self.plan.variant.path is not None
        return file_identity(Path(self.plan.variant.path))

    def reply(self, request: GenerationRequest | str, control: Control | None = None) -> Reply:
        """Generate and return the whole reply. Errors: as `stream`."""
        for event in self.stream(request, control):
            if isinstance(event, Done):
                return event.reply
        raise SlmError("the stream ended without its last event")

    def close(self) -> None:
        """End the child process; what it prepares ends first."""
        if self._warming is not None:
            self._warming.stop()
            self._warming = None
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remember_speed(self, reply: Reply) -> None:
        """Keep how fast this engine read, for later forecasts; replies too short to tell are passed over.

        Where no speed was foretold, that of a reply is what is expected of the next ones.
        """
        decoded = (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0)
        if self.plan.expected_decode_tps is None and decoded >= LEAST_TOKENS and reply.timings.decode_tps > 0.0:
            self.plan = replace(self.plan, expected_decode_tps=reply.timings.decode_tps)
        weights = read_bytes_per_token(self.spec, self.plan.variant)
        if weights is not None:
            remember_reply(
                paths().cache,
                share_key(self.plan.backend, self.plan.device),
                reply,
                weights_bytes=weights,
                kv_bytes_per_token=self.spec.shape.kv_bytes_per_token(),
            )

    def _tell(self, waited_s: float, fraction: float | None) -> None:
        status = "starting the engine…" if fraction is None else f"loading {fraction:.0%}"
        if self.plan.backend == ahead.ELSEWHERE:
            status = "connecting…"
        if self._compiles:
            status = f"compiling the model for the {self.plan.device.upper()}, the first time only…"
        if waited_s >= SILENCE_S and status != self._told:
            self._told = status
            self._on_status(status)


def _runnable(choice: Choice) -> Plan:
    """Return the best plan, if it can run now. Errors: `DownloadFailed`, `ModelBroken`, `DoesNotFit`."""
    plan = choice.plans[0]
    if plan.variant.path is None:
        raise DownloadFailed(f"{choice.spec.id} is not on this disk", hint=f"slm pull {choice.spec.id}")
    if plan.variant.kind == "gguf" and plan.backend != "scripted":
        checked_header(Path(plan.variant.path), paths().cache)  # before native code sees the file
    if not plan.fits:
        raise does_not_fit(plan, largest_program())
    return plan


def load_settings_of(plan: Plan, settings: Settings) -> LoadSettings:
    """Return what a child needs to load a plan. Errors: `UsageError` for a template that can't be read."""
    assert plan.variant.path is not None
    return LoadSettings(
        backend=plan.backend,
        model_path=plan.variant.path,
        context_tokens=plan.context_tokens,
        threads=plan.threads,
        tags=plan.spec.tags,
        think=plan.spec.think,
        template=template_given(settings, plan.spec),
        bridge=settings.bridge if settings.bridge is not None else plan.spec.bridge,
        device=plan.device,
        prompt_tokens=plan.prompt_tokens,
        response_tokens=plan.response_tokens,
        speculation=settings.speculation,
        remote_model=plan.variant.served_as,
        key_env=plan.variant.key_env,
    )


def _in_user_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put a system prompt at the head of the first user turn, where there is one."""
    roles = [message.role for message in messages]
    if roles[:1] != ["system"] or "user" not in roles:
        return tuple(messages)
    at = roles.index("user")
    asked = replace(messages[at], content=f"{messages[0].content}\n\n{messages[at].content}")
    return (*messages[1:at], asked, *messages[at + 1 :])


def _will_compile(settings: LoadSettings) -> bool:
    from slm_local.backends.openvino.cache import will_compile  # the package costs more than a plain start

    return will_compile(settings)


def template_given(settings: Settings, spec: ModelSpec) -> str | None:
    """Return the chat template that replaces the file's own, if any. Errors: `UsageError`."""
    if settings.template_file is None:
        return spec.template
    try:
        return Path(settings.template_file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the template {settings.template_file} can't be read: {error}", hint="--template FILE (Jinja, UTF-8)"
        ) from error


def _overlay(base: Sampling, over: SamplingDefaults | SamplingOverrides) -> Sampling:
    """Return `base` with every field that `over` sets."""
    names = {field.name for field in fields(base)}
    changes = {name: value for name in names if (value := getattr(over, name, None)) is not None}
    return replace(base, **changes)
