"""Thinking switched on or off in the prompt, in the way that the model's template offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from slm_local.errors import UsageError
from slm_local.generation import Message, Prompt, PromptRun, ReasoningTags, ThinkControl, ThinkMode
from slm_local.reasoning import line_break, think_state
from slm_local.template.chat import ChatTemplate

Runs = tuple[PromptRun, ...]


class Rendered(Protocol):
    """A conversation rendered with thinking switched, or left alone, by the template's variable."""

    def __call__(self, shown: Sequence[Message] = ..., *, thinks: bool | None = ...) -> Runs:
        """Return the prompt of these messages, the request's own if none are given."""
        ...


def prompt_for(
    template: ChatTemplate,
    messages: Sequence[Message],
    think: ThinkMode,
    control: ThinkControl,
    tags: ReasoningTags | None,
    adds_bos: bool,
    tools: str = "",
) -> Prompt:
    """Render a conversation with thinking as asked for; `think_state` is read off the result.

    `tools`: as `GenerationRequest.tools`. Errors: those of `ChatTemplate.render`; `UsageError` where this model's
    thinking can't be switched so.
    """

    def rendered(shown: Sequence[Message] = messages, *, thinks: bool | None = None) -> Runs:
        variables = {} if control.switch is None or thinks is None else {control.switch: thinks}
        return template.render(shown, adds_bos=adds_bos, tools=tools, variables=variables)

    if tags is None:
        if think == "on":
            raise UsageError("this model has no thinking to switch on", hint="leave it out: --think auto")
        return _prompt(rendered(), tags)
    match think:
        case "off":
            runs = _closed(rendered, messages, control, tags)
        case "on" | "open":
            runs = rendered(thinks=True)
            if think == "on" or think_state(_tail(runs), tags) != "closed":
                runs = _opened(runs, tags)
        case "auto":
            runs = _as_left(rendered, control, tags)
    return _prompt(runs, tags)


def _closed(rendered: Rendered, messages: Sequence[Message], control: ThinkControl, tags: ReasoningTags) -> Runs:
    """Switch thinking off: by variable, else by word; then close what the prompt still leaves open."""
    if control.switch is None and control.off_word is None and not control.off_block:
        raise UsageError("this model's thinking can't be switched off", hint="leave it out: --think auto")
    if control.switch is None and control.off_word is not None:
        messages = _with_system_word(messages, control.off_word)
    runs = rendered(messages, thinks=False)
    line = line_break(tags)
    match think_state(_tail(runs), tags):
        case "open":
            return _appended(runs, f"{'' if _tail(runs).endswith(line) else line}{line}{tags.close}{line}{line}")
        case "unopened" if control.off_block:
            return _appended(runs, f"{tags.open}{line}{line}{tags.close}{line}{line}")
        case _:
            return runs


def _opened(runs: Runs, tags: ReasoningTags) -> Runs:
    """Open thinking where the prompt leaves it unopened."""
    match think_state(_tail(runs), tags):
        case "open":
            return runs
        case "closed":
            raise UsageError(
                "the model's chat template closes thinking, whatever it is asked for",
                hint="give another chat template: --template FILE",
            )
        case "unopened":
            return _appended(runs, tags.open + line_break(tags))


def _as_left(rendered: Rendered, control: ThinkControl, tags: ReasoningTags) -> Runs:
    """Leave thinking to the template, but for one that closes it only because its switch was not set."""
    runs = rendered()
    state = think_state(_tail(runs), tags)
    if state == "closed" and control.switch is not None:
        # llama.cpp's copies of the templates of R1-Distill-Qwen-32B and QwQ do so; a reasoning model should think.
        return rendered(thinks=True)
    return _opened(runs, tags) if state == "unopened" and tags.force_open else runs


def _with_system_word(messages: Sequence[Message], word: str) -> list[Message]:
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n{word}"), *messages[1:]]
    return [Message(role="system", content=word), *messages]


def _tail(runs: Runs) -> str:
    """Return the template's own text at the prompt's end; what a user wrote there says nothing."""
    return runs[-1].text if runs and runs[-1].allows_control else ""


def _appended(runs: Runs, text: str) -> Runs:
    if runs and runs[-1].allows_control:
        return (*runs[:-1], replace(runs[-1], text=runs[-1].text + text))
    return (*runs, PromptRun(text=text, allows_control=True))


def _prompt(runs: Runs, tags: ReasoningTags | None) -> Prompt:
    return Prompt(runs=runs, think_state=think_state(_tail(runs), tags))
