"""The command line by which another engine serves the same model with the same sampling, reasoning parser and context.

It knows vLLM, OpenVINO Model Server and llama-server as their own documentation describes them: vLLM's serve arguments
and reasoning outputs, the Model Server's parameters and model to parser mapping, llama.cpp's tools/server/README.md. It
starts nothing, asks nobody, and names no repository that the model's facts don't name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, assert_never, get_args

from slm_local.errors import UsageError
from slm_local.generation import DEFAULT_BRIDGE, Sampling, ThinkControl
from slm_local.model import ModelSpec, SamplingDefaults, Variant, gigabytes
from slm_local.sanitize import shell_word

EngineName = Literal["vllm", "ovms", "llama-server"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

ADDRESSES: dict[EngineName, str] = {
    "vllm": "http://127.0.0.1:8000/v1",
    "ovms": "http://127.0.0.1:8000/v3",
    "llama-server": "http://127.0.0.1:8080/v1",
}
"""Where each engine's OpenAI routes begin with the ports that are written here."""

VLLM_PARSERS = {
    "deepseek-r1": "deepseek_r1",
    "qwen": "deepseek_r1",
    "qwen3": "qwen3",
    "qwen3.5": "qwen3",
    "gpt-oss": "openai_gptoss",
    "ministral": "mistral",
}
"""Reasoning parsers by family, as vLLM's documentation and recipes pair them; family qwen is QwQ."""

VLLM_FAMILY_OPTIONS = {
    "ministral": (("--tokenizer-mode", "mistral"), ("--config-format", "mistral"), ("--load-format", "mistral")),
}
"""What vLLM's recipe for a family gives besides: Mistral's parser needs Mistral's own tokenizer."""

OVMS_PARSERS = {"qwen3": "qwen3", "qwen3.5": "qwen3", "gpt-oss": "gptoss", "minicpm": "minicpm5", "lfm2.5": "lfm2"}
"""Reasoning parsers by family, as the Model Server's documentation and parser_config_validation.cpp pair them."""

MUCH_KV_BYTES = 4 * 10**9
"""A KV cache from which on it is said what the context takes: half of a small graphics card's memory."""

THINK_TAGS = ("<think>", "</think>")

VLLM_NAMES = {"repeat_penalty": "repetition_penalty"}
"""vLLM's names where they differ from ours; Hugging Face's generation_config.json has the same."""

VLLM_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty")
"""What `--override-generation-config` turns into defaults of requests (vLLM 0.32, ModelConfig)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """How another engine serves a model."""

    engine: EngineName
    parts: tuple[tuple[str, ...], ...]
    """The command line's words: first the command itself, then each option with its value."""
    address: str
    """Where its OpenAI routes begin."""
    model: str
    """The name that requests give it."""
    remarks: tuple[str, ...]
    """What the engine can't do for this model, and what is to be done beside the command."""

    @property
    def command(self) -> str:
        """Return the command as this system's shell takes it: an option a line, on Windows all on one."""
        between = " " if sys.platform == "win32" else " \\\n  "
        return between.join(" ".join(map(shell_word, part)) for part in self.parts)


def handover(
    engine: EngineName,
    spec: ModelSpec,
    here: Sequence[Variant] = (),
    *,
    context_tokens: int | None = None,
    quant: str | None = None,
) -> Handover:
    """Return the command by which an engine serves a model.

    `here` are its forms on this disk. `context_tokens` and `quant` are what the person asked for; without them it is
    the whole context, and the registry's first form. Errors: `UsageError` where the engine has nothing to serve.
    """
    context = context_tokens or spec.context_tokens
    match engine:
        case "vllm":
            parts, remarks = _vllm(spec, here, context)
        case "ovms":
            parts, remarks = _ovms(spec, here, quant)
        case "llama-server":
            parts, remarks = _llama_server(spec, here, context, quant)
        case _:
            assert_never(engine)
    return Handover(
        engine=engine,
        parts=tuple(parts),
        address=ADDRESSES[engine],
        model=spec.id,
        remarks=(*remarks, *_remarks(spec), *(_room(spec) if context_tokens is None and engine != "ovms" else ())),
    )


Parts = list[tuple[str, ...]]


def _vllm(spec: ModelSpec, here: Sequence[Variant], context: int | None) -> tuple[Parts, list[str]]:
    checkpoint = next((each.path for each in here if each.kind == "checkpoint" and each.path), None)
    source = checkpoint or spec.original_repo
    if source is None:
        raise _nothing_to_serve("vllm", spec, "serves original weights, and no repository of them is known for it")
    parts: Parts = [("vllm", "serve", source), ("--served-model-name", spec.id), ("--host", "127.0.0.1")]
    if context is not None:
        parts.append(("--max-model-len", str(context)))
    parser, remarks = _vllm_parser(spec)
    if parser is not None:
        parts.append(("--reasoning-parser", parser))
    parts += VLLM_FAMILY_OPTIONS.get(spec.family, ())
    sampling = _sampling(spec.sampling)
    defaults = {name: getattr(sampling, name) for name in VLLM_DEFAULTS}
    wanted = {name: value for name, value in defaults.items() if name == "temperature" or value != _off(name)}
    named = {VLLM_NAMES.get(name, name): value for name, value in wanted.items()}
    parts += [("--generation-config", "vllm"), ("--override-generation-config", json.dumps(named))]
    control = spec.think or ThinkControl()
    if spec.thinking.mode == "off" and control.switch:
        parts.append(("--default-chat-template-kwargs", json.dumps({control.switch: False})))
    if spec.template is not None:
        parts.append(("--chat-template", _template_file(spec)))
    if spec.thinking.max_tokens is not None:
        remarks.append(f"clients send the limit of thinking: thinking_token_budget {spec.thinking.max_tokens}")
    if spec.gated:
        remarks.append("the repository asks for an accepted licence: vLLM reads the token from HF_TOKEN")
    return parts, remarks


def _vllm_parser(spec: ModelSpec) -> tuple[str | None, list[str]]:
    """Return vLLM's reasoning parser for a model, and what is to be said of it."""
    if spec.tags is None:
        return None, []
    known = VLLM_PARSERS.get(spec.family)
    if known is not None:
        return known, []
    if (spec.tags.open, spec.tags.close) != THINK_TAGS:
        return None, [f"vLLM has no reasoning parser for {spec.tags.open}: thinking stays in the answer"]
    control = spec.think or ThinkControl()
    parser = "qwen3" if control.switch else "deepseek_r1"
    return parser, [f"vLLM's documentation does not name this model: its parser {parser} reads the same tags"]


def _ovms(spec: ModelSpec, here: Sequence[Variant], quant: str | None) -> tuple[Parts, list[str]]:
    source, remarks = _ovms_source(spec, here, quant)
    parts: Parts = [("ovms", "--rest_port", "8000"), ("--rest_bind_address", "127.0.0.1"), *source]
    parts += [("--model_name", spec.id), ("--task", "text_generation")]
    if spec.tags is not None:
        parser = OVMS_PARSERS.get(spec.family)
        if parser is None and (spec.tags.open, spec.tags.close) == THINK_TAGS:
            parser = "qwen3"
            remarks.append(
                "the Model Server's documentation does not name this model: its parser qwen3 reads the same tags, but"
                " where the prompt opens thinking only in recent releases (model_server#3829)"
            )
        if parser is not None:
            parts.append(("--reasoning_parser", parser))
        else:
            remarks.append(f"the Model Server has no parser for {spec.tags.open}: thinking stays in the answer")
        remarks.append("the Model Server has no limit of thinking: max_tokens may end it without an answer")
    advised = {name: value for name, value in asdict(spec.sampling).items() if value is not None}
    wanted = ", ".join(f"{name} {value:g}" for name, value in advised.items()) or "temperature 0"
    remarks.append(
        f"no option sets sampling: it is what generation_config.json in the model's folder says; clients send {wanted}"
    )
    remarks.append("no option limits the context: it is the model's own")
    if spec.template is not None:
        remarks.append(f"put {_template_file(spec)} into the model's folder as chat_template.jinja")
    return parts, remarks


def _ovms_source(spec: ModelSpec, here: Sequence[Variant], quant: str | None) -> tuple[Parts, list[str]]:
    """Return the options that say which folder or repository is served."""
    local = next((each for each in _fitting(here, "openvino", quant) if each.path), None)
    if local is not None:
        folder = Path(local.path or "")
        return [("--model_repository_path", str(folder.parent)), ("--source_model", folder.name), *_npu(local)], []
    forms = sorted(_fitting(spec.variants, "openvino", quant), key=lambda each: each.device == "npu")
    ready = next((each for each in forms if each.repo), None)
    to_models = ("--model_repository_path", "models")
    if ready is not None and ready.repo is not None:
        remarks = [] if ready.verified else [f"{ready.repo} is known second-hand only"]
        return [to_models, ("--source_model", ready.repo), *_npu(ready)], remarks
    if spec.original_repo is None or quant is not None:
        wanted = f" in {quant}" if quant is not None else ""
        raise _nothing_to_serve("ovms", spec, f"serves OpenVINO folders, and no repository of one{wanted} is known")
    return [to_models, ("--source_model", spec.original_repo), ("--weight-format", "int4")], [
        "no OpenVINO repository is known for it: the Model Server converts the original weights as it starts,"
        " which takes its image with optimum-cli (tag latest-py)"
    ]


def _npu(variant: Variant) -> Parts:
    return [("--target_device", "NPU")] if variant.device == "npu" else []


def _llama_server(
    spec: ModelSpec, here: Sequence[Variant], context: int | None, quant: str | None
) -> tuple[Parts, list[str]]:
    sampling = _sampling(spec.sampling)
    parts: Parts = [("llama-server", *_gguf(spec, here, quant)), ("--alias", spec.id)]
    if context is not None:
        parts.append(("--ctx-size", str(context)))
    for option, name in (("--temp", "temperature"), ("--top-p", "top_p"), ("--top-k", "top_k"), ("--min-p", "min_p")):
        parts.append((option, f"{getattr(sampling, name):g}"))  # written also where it is off: its own defaults are not
    for option, name in (("--repeat-penalty", "repeat_penalty"), ("--presence-penalty", "presence_penalty")):
        if getattr(sampling, name) != _off(name):
            parts.append((option, f"{getattr(sampling, name):g}"))
    remarks: list[str] = []
    if spec.tags is not None:
        # on: `auto` switches thinking off where it does not recognise the template, as with tiny-reasoner's
        parts += [("--reasoning-format", "deepseek"), ("--reasoning", "off" if spec.thinking.mode == "off" else "on")]
        remarks.append(
            "llama-server reads the tags off the template; where it finds none, thinking stays in the answer"
        )
        if spec.thinking.mode != "off" and spec.thinking.max_tokens is not None:
            bridge = spec.bridge if spec.bridge is not None else DEFAULT_BRIDGE
            parts += [
                ("--reasoning-budget", str(spec.thinking.max_tokens)),
                ("--reasoning-budget-message", bridge),
            ]
        if spec.tags.force_open:
            remarks.append("slm opens thinking in the prompt; llama-server does what the file's template says")
    if spec.template is not None:
        parts.append(("--chat-template-file", _template_file(spec)))
    return parts, remarks


def _gguf(spec: ModelSpec, here: Sequence[Variant], quant: str | None) -> tuple[str, ...]:
    """Return the options that say which GGUF file is served: one that lies here, else the registry's."""
    for each in _fitting(here, "gguf", quant):
        if each.path:
            return ("--model", each.path)
    for each in _fitting(spec.variants, "gguf", quant):
        if each.repo and each.file:
            return ("--hf-repo", each.repo, "--hf-file", each.file)
    wanted = f" in {quant}" if quant is not None else ""
    raise _nothing_to_serve("llama-server", spec, f"serves GGUF files, and none{wanted} is known")


def _fitting(variants: Sequence[Variant], kind: str, quant: str | None) -> list[Variant]:
    """Return the forms of a kind, of one quantization where that was asked for."""
    wanted = None if quant is None else quant.casefold()
    return [each for each in variants if each.kind == kind and wanted in (None, each.quant.casefold())]


def _nothing_to_serve(engine: EngineName, spec: ModelSpec, why: str) -> UsageError:
    others: dict[EngineName, bool] = {
        "llama-server": any(each.kind == "gguf" for each in spec.variants),
        "vllm": spec.original_repo is not None,
        "ovms": any(each.kind == "openvino" for each in spec.variants),
    }
    other = next((name for name, can in others.items() if can and name != engine), None)
    form = next((each.path for each in spec.variants if each.path is not None), None)
    model = shell_word(spec.id if spec.origin != "file" or form is None else str(form))
    hint = f"slm show {model} --serve-with {other}" if other else f"slm show {model}"
    return UsageError(f"{engine} can't serve {spec.id}: it {why}", hint=hint)


def _sampling(defaults: SamplingDefaults) -> Sampling:
    """Return the sampling that slm applies to a model: what its authors leave unset is off."""
    return replace(Sampling(), **{name: value for name, value in asdict(defaults).items() if value is not None})


def _off(name: str) -> float:
    """Return the value at which a field of the sampling does nothing."""
    value: float = getattr(Sampling(), name)
    return value


def _template_file(spec: ModelSpec) -> str:
    return f"{spec.id}.jinja"


def _room(spec: ModelSpec) -> list[str]:
    """Say what the whole context takes, where that is much and nobody asked for it."""
    per_token = spec.shape.kv_bytes_per_token()
    size_bytes = per_token * spec.context_tokens if per_token and spec.context_tokens else 0
    if size_bytes < MUCH_KV_BYTES:
        return []
    word = shell_word(f"{spec.id}@ctx=8192")
    return [f"a context of {spec.context_tokens:,} tokens takes {gigabytes(size_bytes)}: slm show {word} asks for less"]


def _remarks(spec: ModelSpec) -> list[str]:
    """Return what holds for every engine: what stays the client's to send."""
    remarks = []
    if spec.sampling_no_think is not None:
        advised = {name: value for name, value in asdict(spec.sampling_no_think).items() if value is not None}
        values = ", ".join(f"{name} {value:g}" for name, value in advised.items())
        remarks.append(f"with thinking off its authors advise {values}: clients send it")
    if spec.system is not None:
        remarks.append("the entry's system prompt is the client's to send")
    if spec.template is not None:
        remarks.append(f"{_template_file(spec)} is the entry's own template: `template` in slm show --json")
    return remarks
