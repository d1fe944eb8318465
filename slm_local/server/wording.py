"""Replies in OpenAI's words: usage, finish reasons, log-probabilities, and what of ours goes beside them."""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from slm_local.generation import Finish, Reply, TokenScore

FINISHES: Mapping[Finish, str] = {
    "stop": "stop",
    "empty": "stop",
    "cancelled": "stop",
    "error": "stop",
    "length": "length",
    "context": "length",
    "loop": "length",
}
"""OpenAI's word for each of ours, which is beside it in `slm`."""

DONE = b"data: [DONE]\n\n"


def fresh_id(kind: str) -> str:
    """Return a new id: `chatcmpl-...`."""
    return f"{kind}-{secrets.token_hex(12)}"


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """Return what every object of an answer begins with."""
    return {"id": fresh_id(prefix), "object": kind, "created": int(time.time()), "model": model}


def usage(replies: Sequence[Reply]) -> dict[str, Any] | None:
    """Return the counts of a request's choices; the prompt is counted once. None where an engine tells none."""
    prompt = replies[0].usage.prompt_tokens if replies else None
    thought = _sum(each.usage.think_tokens for each in replies)
    answered = _sum(each.usage.answer_tokens for each in replies)
    if prompt is None or thought is None or answered is None:
        return None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": thought + answered,
        "total_tokens": prompt + thought + answered,
        "prompt_tokens_details": {"cached_tokens": replies[0].usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def usage_of_prompts(replies: Sequence[Reply], choices: int) -> dict[str, Any] | None:
    """Return the counts of several prompts with so many choices each."""
    counts = [usage(replies[at : at + choices]) for at in range(0, len(replies), choices)]
    known = [each for each in counts if each is not None]
    if len(known) < len(counts) or not known:
        return None
    cached = _sum(each["prompt_tokens_details"]["cached_tokens"] for each in known)
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        **{name: sum(each[name] for each in known) for name in names},
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def ours(reply: Reply) -> dict[str, Any]:
    """Return what OpenAI has no words for: why thinking and the reply ended, and how long what took."""
    return {"finish": reply.finish, "cut": reply.cut, "timings": asdict(reply.timings)}


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """Return log-probabilities as chat completions have them."""
    entries = [{**_entry(each), "top_logprobs": [_entry(top) for top in each.top]} for each in scores]
    return {"content": entries, "refusal": None}


def completion_logprobs(scores: Sequence[TokenScore], offset: int = 0) -> dict[str, Any]:
    """Return log-probabilities as the old completions have them; `offset` is the characters before the first token.

    A text that several tokens stand for has the likeliest one's value.
    """
    offsets, texts = [], _texts(scores)
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": [_key(each) for each in scores],
        "token_logprobs": [each.logprob for each in scores],
        "top_logprobs": [_top(each) for each in scores],
        "text_offset": offsets,
    }


def event(values: Mapping[str, Any]) -> bytes:
    """Return an object as one server-sent event."""
    return b"data: " + json.dumps(values, separators=(",", ":")).encode() + b"\n\n"


def text_of(data: Iterable[int]) -> str:
    """Return the text of a token's bytes; of half a character, U+FFFD."""
    return bytes(data).decode(errors="replace")


def _texts(scores: Sequence[TokenScore]) -> list[str]:
    """Return the text that each token adds: a character of several tokens comes with its last one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(bytes(each.data)) for each in scores]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def _entry(score: TokenScore) -> dict[str, Any]:
    return {"token": text_of(score.data), "logprob": score.logprob, "bytes": list(score.data)}


def _key(score: TokenScore) -> str:
    """Return a token's text as a key: half a character is written in bytes, as OpenAI does."""
    try:
        return bytes(score.data).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in score.data)


def _top(score: TokenScore) -> dict[str, float] | None:
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    for each in (*score.top, score):
        if each.logprob is not None:
            found.setdefault(_key(each), each.logprob)
    return found


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(each for each in known if each is not None)
