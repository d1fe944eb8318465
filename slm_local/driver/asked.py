"""What a request may ask beyond text, and whether this engine can do it."""

from __future__ import annotations

from slm_local.backends.base import Backend, Structures
from slm_local.errors import UsageError
from slm_local.generation import GenerationRequest

LACKING = {
    "schema": "this engine can't hold an answer to a schema",
    "logprobs": "this engine does not tell how likely its tokens were",
    "scores": "this engine does not tell how likely the tokens of a prompt are",
}
"""By capability; llama.cpp has all of them."""


def is_scored_only(request: GenerationRequest) -> bool:
    """Tell whether the prompt is to be scored and nothing generated."""
    return request.scores_prompt and request.max_tokens == 0


def check_asked(request: GenerationRequest, backend: Backend) -> None:
    """Raise `UsageError` for what the engine lacks, for what can't be asked together and for a schema it can't hold."""
    if request.scores_prompt and request.prompt_ids is None:
        raise UsageError("only a prompt of token ids can be scored", hint="tokenize it first")
    asked = {
        "schema": request.schema is not None,
        "logprobs": request.logprobs is not None,
        "scores": request.scores_prompt,
    }
    for capability, is_asked in asked.items():
        if is_asked and capability not in backend.capabilities:
            raise UsageError(LACKING[capability], hint="--backend llamacpp")
    if request.schema is not None and isinstance(backend, Structures):
        backend.check_schema(request.schema)
