"""Two pipelines of OpenVINO GenAI behind one narrow face: requests of token ids in, tokens out, step by step.

Neither knows text, prompts or chunks.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from slm_local.backends.openvino.library import IDLE_TOKENIZER, genai, kept_signal_stack, openvino
from slm_local.generation import Control, LoadSettings

SEQUENCES, FORKS = 8, 4
"""Requests at once, and beyond them sequences that go on from others. Each has a block of the KV cache for itself."""

BLOCK_TOKENS = {"CPU": 32}
"""Tokens in a block of the KV cache; 16 elsewhere."""

POLL_S = 0.02
"""How often a wait for a token looks whether it was cancelled."""

End = Literal["stop", "length", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a step gave a request: new tokens, and why it ended, where it did."""

    request: int
    ids: tuple[int, ...]
    end: End | None


class Pipeline(Protocol):
    """A compiled model."""

    sequences: int
    """How many requests may be live."""
    forks: int
    """How many more, for sequences that go on from others."""
    keeps_prefixes: bool
    """Whether a new request finds again what an earlier one with the same beginning computed."""
    longest_prompt: int

    def start(self, ids: Sequence[int], config: Any) -> int:
        """Add a request; return its number. It computes nothing yet."""
        ...

    def stop(self, request: int) -> None:
        """End a request; it gives nothing any more."""
        ...

    def step(self, control: Control) -> list[Output]:
        """Move every request by one step. Only a pipeline that waits, not computes, looks at `control`."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Batched:
    """ContinuousBatchingPipeline: all requests in one batch, one token each a step. Processor and GPU.

    One step holds the interpreter. The whole prompt of a request is read in steps of `batch_tokens` at most.
    """

    sequences = SEQUENCES
    forks = FORKS
    keeps_prefixes = True

    @kept_signal_stack()
    def __init__(self, settings: LoadSettings, model: Path, properties: dict[str, Any], tokenizer: Any) -> None:
        """Compile the model; blocks. `tokenizer` None: it may not be held to any grammar.

        Errors: what the runtime raises.
        """
        module = genai()
        device = settings.device.upper()
        scheduler = module.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        scheduler.max_num_seqs = SEQUENCES + FORKS
        scheduler.max_num_batched_tokens = settings.batch_tokens + SEQUENCES + FORKS
        blocks = math.ceil(settings.context_tokens / BLOCK_TOKENS.get(device, 16))
        scheduler.num_kv_blocks = blocks + SEQUENCES + FORKS  # each sequence ends in a block that is not full
        words = tokenizer or module.Tokenizer(str(IDLE_TOKENIZER))
        self._pipeline = module.ContinuousBatchingPipeline(str(model), words, scheduler, device, **properties)
        self._handles: dict[int, Any] = {}
        self._has_stopped = False
        """Whether a request was stopped since the last step."""
        self._requests = 0
        self.longest_prompt = settings.context_tokens

    def start(self, ids: Sequence[int], config: Any) -> int:
        """Add a request."""
        self._requests += 1
        self._handles[self._requests] = self._pipeline.add_request(self._requests, id_tensor(ids), config)
        return self._requests

    def stop(self, request: int) -> None:
        """End a request; its blocks are free from the next step on, and stay to be found by their content."""
        handle = self._handles.pop(request, None)
        if handle is not None:
            handle.stop()
            self._has_stopped = True

    def step(self, control: Control) -> list[Output]:
        """Compute one step."""
        if not self._handles:
            return []
        self._pipeline.step()
        self._has_stopped = False
        outputs = [self._read(request, handle) for request, handle in self._handles.items()]
        for output in outputs:
            if output.end is not None:
                del self._handles[output.request]
        return outputs

    def _read(self, request: int, handle: Any) -> Output:
        module = genai()
        ids: list[int] = []
        end: End | None = None
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
                if output.finish_reason == module.GenerationFinishReason.STOP:
                    end = "stop"
                elif output.finish_reason == module.GenerationFinishReason.LENGTH:
                    end = "length"
        if end is None and handle.get_status() == module.GenerationStatus.IGNORED:
            end = "memory"
        return Output(request=request, ids=tuple(ids), end=end)

    def close(self) -> None:
        """Free the model; what was stopped gives its blocks back in a step, which else are reported as leaked."""
        for request in list(self._handles):
            self.stop(request)
        if self._has_stopped:
            self._pipeline.step()
        self._pipeline = None


class Single:
    """LLMPipeline: one request at a time, each read from its beginning. What an NPU has.

    It generates in a thread of its own, which lets go of the interpreter, and runs ahead of the steps.
    """

    sequences = 1
    forks = 0
    keeps_prefixes = False

    @kept_signal_stack()
    def __init__(self, settings: LoadSettings, model: Path, properties: dict[str, Any]) -> None:
        """Compile the model; blocks. Errors: what the runtime raises."""
        module = genai()
        tokenizer = module.Tokenizer(str(IDLE_TOKENIZER))
        self._pipeline = module.LLMPipeline(str(model), tokenizer, settings.device.upper(), **properties)
        self._requests = 0
        self._live: int | None = None
        self._told: queue.SimpleQueue[int | End | Exception] = queue.SimpleQueue()
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self.longest_prompt = settings.prompt_tokens or settings.context_tokens

    def start(self, ids: Sequence[int], config: Any) -> int:
        """Begin to generate; waits until an earlier request has noticed that it was stopped."""
        if self._thread is not None:
            self._thread.join()
        self._requests += 1
        self._told, self._halt = queue.SimpleQueue(), threading.Event()
        arguments = (id_tensor(ids), config, self._told, self._halt)
        self._thread = threading.Thread(target=self._generate, args=arguments, name="slm-npu", daemon=True)
        self._thread.start()
        self._live = self._requests
        return self._requests

    def _generate(
        self, ids: Any, config: Any, told: queue.SimpleQueue[int | End | Exception], halt: threading.Event
    ) -> None:
        module = genai()

        class Listener(module.StreamerBase):  # type: ignore[misc, name-defined]
            """Passes tokens on; an exception in it would be lost, so it does nothing else."""

            def write(self, tokens: int | list[int]) -> Any:
                for token in [tokens] if isinstance(tokens, int) else tokens:
                    told.put(token)
                return module.StreamingStatus.STOP if halt.is_set() else module.StreamingStatus.RUNNING

            def end(self) -> None:
                """Do nothing: the result says why it ended."""

        try:
            reasons = self._pipeline.generate(ids, config, Listener()).finish_reasons
            told.put("length" if module.GenerationFinishReason.LENGTH in reasons else "stop")
        except Exception as error:  # handed to the thread that steps
            told.put(error)

    def stop(self, request: int) -> None:
        """Have the request end at its next token; what it wrote ahead is dropped."""
        self._halt.set()
        self._live = None

    def step(self, control: Control) -> list[Output]:
        """Wait for the next token."""
        while self._live is not None and not control.cancelled:
            try:
                told = self._told.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if isinstance(told, Exception):
                raise told
            if isinstance(told, int):
                return [Output(request=self._live, ids=(told,), end=None)]
            return [Output(request=self._live, ids=(), end=told)]
        return []

    def close(self) -> None:
        """Free the model, once it has noticed."""
        self._halt.set()
        if self._thread is not None:
            self._thread.join()
        self._pipeline = None


def id_tensor(ids: Sequence[int]) -> Any:
    """Return token ids as a tensor of shape 1 x count, int64."""
    import numpy as np

    return openvino().Tensor(np.asarray([ids], dtype=np.int64))


def properties_for(settings: LoadSettings, folder: Path | None) -> dict[str, Any]:
    """Return the properties that a device takes; `folder` holds compiled models, None: nothing is kept.

    An NPU compiles for fixed lengths. Its default response, 128 tokens, would cut every thought.
    """
    found: dict[str, Any] = {} if folder is None else {"CACHE_DIR": str(folder)}
    match settings.device.partition(".")[0]:
        case "cpu":
            found["INFERENCE_NUM_THREADS"] = settings.threads
        case "npu":
            found["MAX_PROMPT_LEN"] = settings.prompt_tokens or settings.context_tokens
            found["MIN_RESPONSE_LEN"] = settings.response_tokens or settings.context_tokens
    return found


def make_pipeline(settings: LoadSettings, model: Path, properties: dict[str, Any], tokenizer: Any) -> Pipeline:
    """Compile the model for its device, in the pipeline that the device has; `tokenizer` as for `Batched`."""
    if settings.device.partition(".")[0] == "npu":
        return Single(settings, model, properties)
    return Batched(settings, model, properties, tokenizer)
