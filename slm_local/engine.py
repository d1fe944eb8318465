"""Opens a model in a child process of its own and streams from it.

`open_model` is the way in: reference, plan, header check, child, load. An `Engine` whose child died starts a new
one at the next request. The process that uses an engine never imports a runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import assert_never

from slm_local.config import SamplingOverrides, Settings, load_settings
from slm_local.errors import DownloadFailed, EngineMissing, SlmError, UsageError
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    Message,
    ModelFacts,
    Reply,
    Sampling,
    StreamEvent,
    ThinkMode,
)
from slm_local.gguf_header import checked_header
from slm_local.hardware import probe
from slm_local.metrics import Collector
from slm_local.model import ModelSpec, Plan, SamplingDefaults, Variant
from slm_local.paths import make_folder, paths
from slm_local.registry import Registry, Resolved, find_local, load_registry, spec_for_file
from slm_local.selector import does_not_fit, rank
from slm_local.worker import Worker

SILENCE_S = 0.5
"""After so long without a sign, the person is told what is going on."""

Status = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a model reference means here: the model, the settings merged, every plan, best first, and remarks."""

    spec: ModelSpec
    settings: Settings
    plans: tuple[Plan, ...]
    notes: tuple[str, ...]


def choose(reference: str, *, settings: Settings | None = None, registry: Registry | None = None) -> Choice:
    """Resolve a model reference and rank the ways to run it here.

    Errors: `UnknownModel`, `UsageError`, `ModelBroken`, `DownloadFailed` for a reference that would need the network.
    """
    registry = registry or load_registry(paths().config / "models.toml")
    resolved = registry.resolve(reference)
    settings = settings or load_settings({}, reference_settings=resolved.settings)
    spec, here, notes = _spec_here(resolved, registry)
    return Choice(spec=spec, settings=settings, plans=tuple(rank(spec, probe(), settings, here)), notes=notes)


def open_model(
    reference: str,
    *,
    settings: Settings | None = None,
    registry: Registry | None = None,
    on_status: Status | None = None,
    control: Control | None = None,
) -> Engine:
    """Open a model by any reference the command line takes; blocks until it is loaded.

    `settings` None reads config.toml, SLM_* variables and what hangs on the reference. `on_status` is told what goes
    on after half a second of silence. Errors: those of `choose`, `DoesNotFit`, `EngineMissing`, `ModelBroken`,
    `WorkerCrashed`, `Interrupted` when `control` was cancelled.
    """
    chosen = choose(reference, settings=settings, registry=registry)
    engine = Engine(chosen, on_status=on_status)
    try:
        engine.start(control or Control())
    except BaseException:
        engine.close()
        raise
    return engine


class Engine:
    """An open model. A context manager; `close` ends its child, and a later request would start another."""

    def __init__(self, choice: Choice, *, on_status: Status | None = None) -> None:
        self.spec = choice.spec
        self.settings = choice.settings
        self.notes = choice.notes
        self.plan = _runnable(choice)
        self.system = choice.settings.system if choice.settings.system is not None else choice.spec.system
        self.load_s = 0.0
        self._load_settings = _load_settings(self.plan, choice.settings)
        self._facts: ModelFacts | None = None
        self._on_status = on_status or (lambda text: None)
        self._told = ""
        self._worker: Worker | None = None
        self._unreported_load_s = 0.0

    @property
    def facts(self) -> ModelFacts:
        """Return what the loaded model says of itself."""
        if self._facts is None:
            raise SlmError("the model is not loaded yet")
        return self._facts

    @property
    def pid(self) -> int | None:
        """Return the child's process id, None while there is none."""
        return self._worker.pid if self._worker is not None else None

    def start(self, control: Control) -> None:
        """Start the child and load, unless it runs already; blocks. Errors: as `open_model`."""
        if self._worker is not None and self._worker.is_alive:
            return
        begun = time.perf_counter()
        self.close()
        self._told = ""
        self._worker = Worker(make_folder(paths().logs))
        self._facts = self._worker.load(self._load_settings, control, self._tell)
        self.load_s = self._unreported_load_s = time.perf_counter() - begun

    def request(
        self, messages: Sequence[Message] | str, *, think: ThinkMode | None = None, max_tokens: int | None = None
    ) -> GenerationRequest:
        """Make a request with the user's settings over the model's defaults; a string is a single user turn.

        Errors: `UsageError` for a prompt of nothing but white space.
        """
        if isinstance(messages, str):
            if not messages.strip():
                raise UsageError("the prompt is empty", hint='slm run MODEL "What is 47 + 38?"')
            shown = [Message(role="system", content=self.system)] if self.system else []
            messages = [*shown, Message(role="user", content=messages)]
        think = think or self.settings.think
        return GenerationRequest(
            messages=tuple(messages),
            sampling=self.sampling(think),
            max_tokens=max_tokens or self.settings.max_tokens,
            stop=self.settings.stop,
            think=think,
        )

    def sampling(self, think: ThinkMode) -> Sampling:
        """Return the sampling that applies: the model's defaults for this way of thinking under the user's own."""
        defaults = self.spec.sampling
        if think == "off" and self.spec.sampling_no_think is not None:
            defaults = self.spec.sampling_no_think
        applied = _overlay(Sampling(), defaults)
        return _overlay(applied, self.settings.sampling)

    def stream(self, request: GenerationRequest | str, control: Control | None = None) -> Iterator[StreamEvent]:
        """Generate; yield events, the last of them `Done`, its timings by this process's clock.

        A child that died before is started anew first. Errors: `PromptTooLong`, `UsageError`, `WorkerCrashed`, ...
        """
        if isinstance(request, str):
            request = self.request(request)
        control = control or Control()
        self.start(control)
        assert self._worker is not None
        collector = Collector(load_s=self._unreported_load_s)
        self._unreported_load_s = 0.0
        for event in self._worker.stream(request, control):
            collector.feed(event)
            yield Done(reply=collector.reply()) if isinstance(event, Done) else event

    def reply(self, request: GenerationRequest | str, control: Control | None = None) -> Reply:
        """Generate and return the whole reply. Errors: as `stream`."""
        for event in self.stream(request, control):
            if isinstance(event, Done):
                return event.reply
        raise SlmError("the stream ended without its last event")

    def close(self) -> None:
        """End the child process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, waited_s: float, fraction: float | None) -> None:
        status = "starting the engine…" if fraction is None else f"loading {fraction:.0%}"
        if waited_s >= SILENCE_S and status != self._told:
            self._told = status
            self._on_status(status)


def _spec_here(resolved: Resolved, registry: Registry) -> tuple[ModelSpec, tuple[Variant, ...], tuple[str, ...]]:
    """Return the model that a reference names, its variants that are on this disk, and remarks."""
    match resolved.kind:
        case "registry":
            assert resolved.spec is not None
            return resolved.spec, find_local(resolved.spec, paths().models_dir), resolved.notes
        case "scripted":
            assert resolved.spec is not None
            return resolved.spec, resolved.spec.variants, resolved.notes
        case "path":
            assert resolved.path is not None
            header = checked_header(Path(resolved.path), paths().cache)
            spec, line = spec_for_file(header, registry.models)
            return spec, spec.variants, (*resolved.notes, line)
        case "openvino":
            raise EngineMissing(
                f"{resolved.path} is an OpenVINO model, and this version runs GGUF files only",
                hint="give a .gguf file, or: slm ls",
            )
        case "hf":
            raise DownloadFailed(
                f"{resolved.reference} is on the Hugging Face Hub, and this version does not fetch models",
                hint=f"download a .gguf file of {resolved.repo} and give its path: slm run PATH/TO/FILE.gguf",
            )
        case "url":
            raise UsageError(
                f"{resolved.reference} is a remote engine, and this version runs local models only", hint="slm ls"
            )
        case _:
            assert_never(resolved.kind)


def _runnable(choice: Choice) -> Plan:
    """Return the best plan, if it can run now. Errors: `DownloadFailed`, `ModelBroken`, `DoesNotFit`."""
    plan = choice.plans[0]
    if plan.variant.path is None:
        raise _not_here(choice.spec, plan.variant)
    if plan.backend == "llamacpp":
        checked_header(Path(plan.variant.path), paths().cache)  # before native code sees the file
    if not plan.fits:
        raise does_not_fit(plan)
    return plan


def _not_here(spec: ModelSpec, variant: Variant) -> DownloadFailed:
    where = f"{variant.file} of huggingface.co/{variant.repo}" if variant.file else f"huggingface.co/{variant.repo}"
    return DownloadFailed(
        f"{spec.id} is not on this disk, and this version does not fetch models",
        hint=f"download {where} into {paths().models_dir}, or try: slm run tiny-reasoner",
    )


def _load_settings(plan: Plan, settings: Settings) -> LoadSettings:
    assert plan.variant.path is not None
    return LoadSettings(
        backend=plan.backend,
        model_path=plan.variant.path,
        context_tokens=plan.context_tokens,
        threads=plan.threads,
        tags=plan.spec.tags,
        think=plan.spec.think,
        template=_template(settings, plan.spec),
    )


def _template(settings: Settings, spec: ModelSpec) -> str | None:
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
