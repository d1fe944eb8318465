"""What a remote engine's refusals mean, each as one error with what to type."""

from __future__ import annotations

from typing import Any

from slm_local.backends.base import prompt_too_long
from slm_local.backends.openai.address import Address
from slm_local.errors import PromptTooLong, RemoteFailed, SlmError
from slm_local.sanitize import shell_word

LEAST_SAID = "no reason given"


def unreachable(address: Address, error: Exception) -> RemoteFailed:
    """Return the error for a server that does not answer."""
    said = address.without_key(str(error)) or type(error).__name__
    return RemoteFailed(f"no engine answers at {address.host}: {said}", hint=f"curl {address.base}/models")


def broken_off(address: Address, error: Exception) -> RemoteFailed:
    """Return the error for a connection that broke in a reply."""
    said = address.without_key(str(error)) or type(error).__name__
    return RemoteFailed(f"the connection to {address.host} broke off: {said}", hint=f"slm run {address.again}")


def no_engine(address: Address, what: str) -> RemoteFailed:
    """Return the error for what does not speak as an engine does."""
    return RemoteFailed(f"{address.host} does not speak OpenAI's protocol: {what}", hint=f"curl {address.base}/models")


def refusal(address: Address, status: int, body: Any, wait: str | None = None) -> SlmError:
    """Return the error for an answer other than 200; `wait` is its Retry-After."""
    said = address.without_key(message_of(body)) or LEAST_SAID
    host = address.host
    if status in (401, 403):
        what = f"refuses the key in {address.key_env}" if address.key else "wants a key"
        return RemoteFailed(f"{host} {what}: {said}", hint=address.setting_key())
    if (too_long := _too_long(body)) is not None:
        return too_long
    if status in (429, 503):
        later = f", again after {wait} s" if wait is not None and wait.isdecimal() else ""
        return RemoteFailed(f"{host} has no place free{later}: {said}", hint=f"slm run {address.again}")
    if status == 404 and address.base == address.root:
        with_v1 = shell_word(f"{address.root}/v1#{address.model}")
        return RemoteFailed(f"{host} knows no such thing: {said}", hint=f"slm run {with_v1}", status=404)
    if status == 404:
        return RemoteFailed(f"{host} knows no such thing: {said}", hint=f"curl {address.base}/models", status=404)
    if 300 <= status < 400:
        return RemoteFailed(f"{host} leads elsewhere ({status}), where nothing is sent", hint="give the address itself")
    return RemoteFailed(f"{host} answers {status}: {said}", hint=f"slm run {address.again}", status=status)


def message_of(body: Any) -> str:
    """Return the sentence in an error's body, whatever its form."""
    match body:
        case {"error": {"message": str(said)}} | {"error": str(said)} | {"message": str(said)} | {"detail": str(said)}:
            return said
        case {"detail": [{"msg": str(said)}, *_]}:
            return said
        case _:
            return body if isinstance(body, str) else ""


def _too_long(body: Any) -> PromptTooLong | None:
    """Return what llama-server tells of a prompt that is too long, with both counts."""
    match body:
        case {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": int(prompt), "n_ctx": int(context)}}:
            return prompt_too_long(prompt, context, context)
        case _:
            return None
