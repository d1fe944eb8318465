"""From load settings to a compiled model that has run once: files checked, cache used, effective properties read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slm_local.backends.llamacpp.loading import known_id
from slm_local.backends.openvino.cache import blobs, open_cache
from slm_local.backends.openvino.library import Report, check_device, genai, openvino, refuse_load, reported
from slm_local.backends.openvino.model import Source, open_source
from slm_local.backends.openvino.pipelines import Pipeline, make_pipeline, properties_for
from slm_local.backends.openvino.rope import mended_folder
from slm_local.backends.openvino.sampling import generation_config
from slm_local.backends.openvino.vocabulary import Words
from slm_local.errors import Interrupted
from slm_local.generation import Control, LoadSettings, ModelFacts

WARM_UP_TOKENS = 32

PENALTIES = (
    "OpenVINO's penalties look at the whole text, repeat_last_n aside; those of presence and frequency leave the "
    "prompt out and start anew where thinking is ended"
)

REREADS = (
    "this device reads prompt and thoughts again where thinking is ended: an answer now comes after about as long as "
    "the first token took, and longer by as much as was thought since"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that is ready."""

    pipeline: Pipeline
    words: Words
    facts: ModelFacts
    warm_up_s: float
    """What a first step of `WARM_UP_TOKENS` took; 0 where there was none."""


def load_model(settings: LoadSettings, control: Control, on_progress: Callable[[float], None]) -> Loaded:
    """Load a model, compiled before if it can be. Errors: `EngineMissing`, `ModelBroken`, `DoesNotFit`, ..."""
    genai()
    check_device(settings.device.upper())
    source = open_source(Path(settings.model_path))
    on_progress(0.1)
    folder = open_cache(settings)
    known = blobs(folder) if folder is not None else set()
    begun = time.perf_counter()
    try:
        pipeline, report, mended = _compiled(settings, source, folder, control)
        on_progress(0.9)
        spent_s = time.perf_counter() - begun
        _go_on(control)
        warm_up_s = _warm_up(pipeline, source.words, control) if pipeline.keeps_prefixes else 0.0
    except (RuntimeError, MemoryError) as error:
        refuse_load(error, settings.model_path, settings.device)
    notes = (*mended, _effective(report, settings), _compiling(folder, known, spent_s), PENALTIES)
    notes += () if pipeline.keeps_prefixes else (REREADS,)
    facts = _facts(source, settings, pipeline, notes)
    return Loaded(pipeline=pipeline, words=source.words, facts=facts, warm_up_s=warm_up_s)


def _compiled(
    settings: LoadSettings, source: Source, folder: Path | None, control: Control
) -> tuple[Pipeline, Report, tuple[str, ...]]:
    _go_on(control)
    mended = mended_folder(source.header, folder) if source.header is not None else None
    _go_on(control)
    with reported() as report:
        model, properties = mended or Path(settings.model_path), properties_for(settings, folder)
        pipeline = make_pipeline(settings, model, properties, source.words.tokenizer)
    if mended is None:
        return pipeline, report, ()
    return pipeline, report, (f"the file's RoPE factors, which OpenVINO's reader leaves out, are in a copy: {mended}",)


def _go_on(control: Control) -> None:
    if control.cancelled:
        raise Interrupted("loading was stopped")


def _warm_up(pipeline: Pipeline, words: Words, control: Control) -> float:
    """Do the one-time work of a first request and of a first decode; return the seconds that reading the prompt took.

    The first decode alone may take seconds, for its kernels are compiled then.
    """
    ends = words.end_ids()
    ids = [token % words.size for token in range(WARM_UP_TOKENS)]
    config = generation_config(genai(), {"do_sample": False}, seed=0, most_tokens=2, end_id=min(ends), end_ids=ends)
    begun = time.perf_counter()
    request = pipeline.start(ids, config)
    read_s: float | None = None
    while True:
        for output in pipeline.step(control):
            if output.request == request and read_s is None and (output.ids or output.end):
                read_s = time.perf_counter() - begun
            if output.request == request and output.end:
                return read_s or 0.0
        _go_on(control)


def _facts(source: Source, settings: LoadSettings, pipeline: Pipeline, notes: tuple[str, ...]) -> ModelFacts:
    words = source.words
    return ModelFacts(
        architecture=source.architecture,
        name=source.name,
        context_tokens=settings.context_tokens,
        trained_context_tokens=source.trained_context_tokens or settings.context_tokens,
        vocabulary_size=words.size,
        chat_template=source.chat_template,
        bos_text=words.bos_text,
        eos_text=words.eos_text,
        adds_bos=source.adds_bos,
        bos_id=known_id(words.bos),
        eos_id=known_id(words.eos),
        pad_id=known_id(words.pad),
        pad_text=words.pad_text,
        control_texts=words.control_texts(),
        capabilities=tuple(sorted(capabilities(settings, pipeline, words))),
        notes=notes,
    )


def capabilities(settings: LoadSettings, pipeline: Pipeline, words: Words) -> frozenset[str]:
    """Return what this way of running can do; `cached_tokens` is never among it: the runtime does not tell.

    "rereads" is what it must do: read everything again to go on after an injection.
    """
    found = {"samples"} if pipeline.sequences > 1 else set()
    found |= {"fork"} if pipeline.forks else set()
    found |= {"schema"} if pipeline.sequences > 1 and words.tokenizer is not None else set()
    found |= set() if pipeline.keeps_prefixes else {"rereads"}
    return frozenset(found | ({"threads"} if settings.device == "cpu" else set()))


def _effective(report: Report, settings: LoadSettings) -> str:
    """Say what the compiled model says of itself."""
    has = report.properties.get
    told = [
        f"inference in {has('INFERENCE_PRECISION_HINT')}" if has("INFERENCE_PRECISION_HINT") else "",
        f"KV cache in {has('KV_CACHE_PRECISION')}" if has("KV_CACHE_PRECISION") else "",
        f"threads: {has('INFERENCE_NUM_THREADS')}" if has("INFERENCE_NUM_THREADS") else "",
    ]
    version = str(openvino().get_version()).split("-")[0]
    known = ", ".join(each for each in told if each) or "it does not say in which precision"
    return f"OpenVINO {version} on {report.devices or settings.device.upper()}: {known}"


def _compiling(folder: Path | None, known: set[str], spent_s: float) -> str:
    if folder is None:
        return f"compiled in {spent_s:.1f} s, and not kept: the disk has no room for it"
    if blobs(folder) - known:
        return f"compiled for this device for the first time in {spent_s:.1f} s; kept for the next start"
    return f"loaded from the compiled model kept before, in {spent_s:.1f} s"
