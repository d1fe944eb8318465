"""A conversation of two turns through one Python client; runs in the environment that try_clients.py makes.

    python conversations.py CLIENT ADDRESS MODEL stream|whole '["first question", "second question"]'

Prints one line of JSON, a list of {"answer", "thinking"} for each turn. What the protocol promises is
asserted on the way.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

Turns = list[dict[str, str]]

MOST_TOKENS = 200


def openai_client(address: str, model: str, questions: list[str], *, is_streamed: bool) -> Turns:
    """Talk through OpenAI's own client."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{address}/v1")
    assert model in [each.id for each in client.models.list()]
    messages: list[Any] = []
    turns: Turns = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        if is_streamed:
            options = {"include_usage": True}
            stream = client.chat.completions.create(model=model, messages=messages, stream=True, stream_options=options)
            turn = streamed_turn(list(stream))
        else:
            whole = client.chat.completions.create(model=model, messages=messages, max_tokens=MOST_TOKENS)
            message = whole.choices[0].message
            assert whole.choices[0].finish_reason in ("stop", "length")
            assert whole.usage.completion_tokens > 0
            turn = {"answer": message.content, "thinking": getattr(message, "reasoning_content", None) or ""}
        turns.append(turn)
        messages.append({"role": "assistant", "content": turn["answer"]})
    return turns


def streamed_turn(chunks: list[Any]) -> dict[str, str]:
    """Join a stream: one role, never both kinds of text in one delta, usage in the last chunk."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    answers = [delta.content or "" for delta in deltas]
    assert not any(thought and answer for thought, answer in zip(thoughts, answers, strict=True))
    assert sum(delta.role is not None for delta in deltas) == 1
    assert chunks[-1].usage.completion_tokens > 0
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] in ("stop", "length")
    return {"answer": "".join(answers), "thinking": "".join(thoughts)}


def ollama_client(address: str, model: str, questions: list[str], *, is_streamed: bool) -> Turns:
    """Talk through Ollama's own client."""
    from ollama import Client

    key = os.environ.get("OPENAI_API_KEY", "")
    client = Client(host=address, headers={"Authorization": f"Bearer {key}"})
    assert any((each.model or "").startswith(model) for each in client.list().models)
    assert client.show(model).details is not None
    messages: list[Any] = []
    turns: Turns = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        came = client.chat(model=model, messages=messages, stream=is_streamed, options={"num_predict": MOST_TOKENS})
        parts = list(came) if is_streamed else [came]
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1].eval_count > 0
        assert parts[-1].total_duration > 0
        answer = "".join(part.message.content or "" for part in parts)
        turns.append({"answer": answer, "thinking": "".join(part.message.thinking or "" for part in parts)})
        messages.append({"role": "assistant", "content": answer})
    assert any((each.model or "").startswith(model) for each in client.ps().models)
    return turns


def inspect_client(address: str, model: str, questions: list[str], *, is_streamed: bool) -> Turns:
    """Have inspect-ai evaluate a task of one conversation through its provider openai-api."""
    import inspect_ai
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageUser, ContentReasoning
    from inspect_ai.solver import Generate, TaskState, generate, solver

    @solver
    def ask(question: str) -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.messages.append(ChatMessageUser(content=question))
            return state

        return solve

    steps = [generate()]
    for question in questions[1:]:
        steps += [ask(question), generate()]
    os.environ |= {"SLM_API_KEY": os.environ["OPENAI_API_KEY"], "SLM_BASE_URL": f"{address}/v1"}
    task = inspect_ai.Task(dataset=[Sample(input=questions[0])], solver=steps)
    with tempfile.TemporaryDirectory() as logs:
        (log,) = inspect_ai.eval(
            task,
            model=f"openai-api/slm/{model}",
            model_args={"stream": is_streamed},
            display="none",
            max_tokens=MOST_TOKENS,
            log_dir=logs,
        )
        assert log.status == "success", log.error
        replies = [each for each in log.samples[0].messages if each.role == "assistant"]
    turns: Turns = []
    for reply in replies:
        parts = reply.content if isinstance(reply.content, list) else []
        thinking = "".join(part.reasoning for part in parts if isinstance(part, ContentReasoning))
        turns.append({"answer": reply.text, "thinking": thinking})
    return turns


CLIENTS = {"openai": openai_client, "ollama": ollama_client, "inspect": inspect_client}

if __name__ == "__main__":
    name, at, served, how, asked = sys.argv[1:]
    print(json.dumps(CLIENTS[name](at, served, json.loads(asked), is_streamed=how == "stream")))
