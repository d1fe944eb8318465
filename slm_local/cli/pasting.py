"""The lines that make other programs use the server: for `llm`, aider, Continue, Zed and VS Code.

Sources: each program's own documentation, named in docs/serve.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from slm_local.sanitize import shell_word

KEY = "KEY"
"""What stands for the server's key: it is not written where others may read it."""


def lines_to_paste(
    address: str, model: str, *, context_tokens: int, takes_tools: bool, has_key: bool
) -> Sequence[tuple[str, str]]:
    """Return a program and what to type or to put into its settings, for a server's `http://host:port`.

    `takes_tools` says whether the model may be offered functions to call: what takes none refuses them.
    """
    base, key = f"{address}/v1", KEY if has_key else "none"
    llm = f"llm openai endpoint {base} -m {shell_word(model)}{f' --key {KEY}' if has_key else ''} 'What is 47 + 38?'"
    aider = f"aider --openai-api-base {base} --openai-api-key {key} --model {shell_word(f'openai/{model}')}"
    name = json.dumps(model)
    tools = ", capabilities: [tool_use]" if takes_tools else ""
    continue_ = f"- {{name: {name}, provider: openai, model: {name}, apiBase: {base}, apiKey: {key}{tools}}}"
    can = {"tools": takes_tools, "images": False, "parallel_tool_calls": False, "prompt_cache_key": False}
    zed_model = {"name": model, "max_tokens": context_tokens, "capabilities": can}
    zed = {"slm": {"api_url": base, "available_models": [zed_model]}}
    code = {
        "name": "slm",
        "vendor": "customendpoint",
        "apiKey": key,
        "apiType": "chat-completions",
        "models": [
            {
                "id": model,
                "name": model,
                "url": f"{base}/chat/completions",
                "toolCalling": takes_tools,
                "vision": False,
                "maxInputTokens": context_tokens // 2,
                "maxOutputTokens": context_tokens // 2,
            }
        ],
    }
    return (
        ("llm", llm),
        ("aider", aider),
        ("Continue, under models: in config.yaml", continue_),
        ("Zed, in settings.json", '"language_models": ' + json.dumps({"openai_compatible": zed})),
        ("VS Code, in chatLanguageModels.json", json.dumps(code)),
    )
