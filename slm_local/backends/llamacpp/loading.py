"""From load settings to a model and a context of llama.cpp's, and to what the model says of itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_local.backends.llamacpp.library import AbortFlag
from slm_local.backends.llamacpp.speculation import MOST_ROWS
from slm_local.backends.llamacpp.vocabulary import Vocabulary
from slm_local.errors import DoesNotFit, Interrupted, ModelBroken
from slm_local.generation import Control, LoadSettings, ModelFacts

PLACES, FORKS = 16, 8
"""Requests at once, and beyond them sequences that go on from others, so that a request admitted always finds a slot.
llama.cpp keeps a row of logits for each from the start: 0.6 MB for a vocabulary of 152,000. A processor's arithmetic is
used up by fewer rows, so more at once would be no faster."""

PLACES_WITH_STATE, FORKS_WITH_STATE = 6, 2
"""The same for recurrent and hybrid models, whose states, megabytes each, are there from the start."""


IDLE_SHARE = 0.77
"""6,000 tokens for a model of 135 million parameters, 30 layers and a width of 576, as measured on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much a context does at once."""

    places: int
    """Requests."""
    forks: int
    """Sequences that go on from others, beyond them."""
    batch_rows: int
    outputs: int
    """Rows of logits."""

    @property
    def sequences(self) -> int:
        """Return how many sequences there may be."""
        return self.places + self.forks


def sizes_for(settings: LoadSettings, *, drafts: bool, has_states: bool) -> Sizes:
    """Return the sizes for a model: whether its tokens may be guessed ahead, whether its sequences have states."""
    places, forks = (PLACES_WITH_STATE, FORKS_WITH_STATE) if has_states else (PLACES, FORKS)
    sequences = places + forks
    return Sizes(
        places=places,
        forks=forks,
        batch_rows=max(settings.batch_tokens, 2 * sequences),
        outputs=max(sequences, MOST_ROWS if drafts else 0),
    )


def idle_tokens(lib: Any, model: Any) -> int:
    """Return beside how many decoded tokens an idle sequence costs about as much as reading it anew.

    Reading a token takes 2 operations a parameter; a cell in a token's way, some for each layer and each of its width.
    """
    parameters = int(lib.llama_model_n_params(model))
    width = int(lib.llama_model_n_layer(model)) * int(lib.llama_model_n_embd(model))
    return max(1, round(IDLE_SHARE * parameters / max(1, width)))


def load_model(lib: Any, path: str, control: Control, on_progress: Callable[[float], None]) -> Any:
    """Load a GGUF file; blocks. Errors: `ModelBroken`, `Interrupted`."""

    def progress(fraction: float, _data: object) -> bool:
        on_progress(fraction)
        return not control.cancelled

    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    callback = lib.llama_progress_callback(progress)
    parameters.progress_callback = callback
    model = lib.llama_model_load_from_file(str(Path(path)).encode(), parameters)
    if control.cancelled:
        raise Interrupted("loading was stopped")
    if not model:
        raise ModelBroken(
            f"llama.cpp would not load {path}; its log says why",
            hint="slm show " + path,
        )
    return model


def context_parameters(lib: Any, settings: LoadSettings, sizes: Sizes, abort: AbortFlag) -> Any:
    """Return the parameters of a context; `abort` has to live as long as the context."""
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = settings.context_tokens
    parameters.n_batch, parameters.n_ubatch = sizes.batch_rows, settings.batch_tokens
    parameters.n_seq_max, parameters.n_outputs_max = sizes.sequences, sizes.outputs
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.kv_unified = True
    parameters.no_perf = True
    parameters.abort_callback, parameters.abort_callback_data = abort.callback, abort.data
    return parameters


def open_context(lib: Any, model: Any, parameters: Any) -> Any:
    """Open a context. Errors: `DoesNotFit`."""
    context = lib.llama_init_from_model(model, parameters)
    if not context:
        raise DoesNotFit(
            f"llama.cpp could not open a context of {parameters.n_ctx:,} tokens",
            hint=f"ask for a shorter one: --ctx {max(512, parameters.n_ctx // 2)}",
        )
    return context


def model_facts(
    lib: Any, model: Any, words: Vocabulary, context_tokens: int, capabilities: Iterable[str]
) -> ModelFacts:
    """Return what a model says of itself."""
    return ModelFacts(
        architecture=_metadata(lib, model, "general.architecture"),
        name=_metadata(lib, model, "general.name"),
        context_tokens=context_tokens,
        trained_context_tokens=int(lib.llama_model_n_ctx_train(model)),
        vocabulary_size=words.size,
        chat_template=_template(lib, model),
        bos_text=words.text_of(words.bos),
        eos_text=words.text_of(words.eos),
        adds_bos=words.adds_bos,
        bos_id=known_id(words.bos),
        eos_id=known_id(words.eos),
        pad_id=known_id(words.pad),
        pad_text=words.text_of(words.pad),
        control_texts=words.control_texts(),
        capabilities=tuple(sorted(capabilities)),
    )


def known_id(token: int) -> int | None:
    """Return a token's id; None for -1, as vocabularies say that they have none."""
    return token if token >= 0 else None


def _metadata(lib: Any, model: Any, key: str) -> str:
    buffer = ctypes.create_string_buffer(512)
    count = lib.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if count >= 0 else ""


def _template(lib: Any, model: Any) -> str | None:
    data = lib.llama_model_chat_template(model, None)
    return None if data is None else bytes(data).decode("utf-8", "replace")
