"""One model's chat template: messages -> runs of prompt text, in which users' text never becomes a control token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from slm_local.errors import ModelBroken, PromptTooLong, UsageError
from slm_local.generation import Message, PromptRun, ReasoningTags
from slm_local.template.limits import Limits
from slm_local.template.probing import call_shape, shown_call, takes_tools
from slm_local.template.standins import Protected, StandIns, protected_texts
from slm_local.template.turns import CallShape, Json, Turn, mapped, mapped_turn, texts_in, tools_of, turns_of

if TYPE_CHECKING:
    from slm_local.template.sandbox import Renderer

LONGEST_SOURCE = 128 * 2**10
"""Characters; eight times the longest of llama.cpp's templates. Compiling comes before any time limit is read."""

LONGEST_CONVERSATION = 8 * 2**20
"""Characters; about two million tokens, and half of what a template may make of it."""

LONGEST_REASON = 300

ANOTHER_TEMPLATE = "give another chat template: --template FILE"


class ChatTemplate:
    """A parsed template. One thread at a time."""

    def __init__(
        self, source: str, *, bos_text: str, eos_text: str, control_texts: Sequence[str], tags: ReasoningTags | None
    ) -> None:
        """Parse the template. Errors: `ModelBroken` naming `--template FILE`."""
        self._source = _encodable(source)
        self._bos_text = bos_text
        self._eos_text = eos_text
        self._protected = Protected(protected_texts(control_texts, tags))
        self._renderer = _parsed(self._source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        adds_bos: bool,
        tools: str = "",
        variables: Mapping[str, object] | None = None,
    ) -> tuple[PromptRun, ...]:
        """Return the prompt up to where the model goes on; a single run where users' text looks like no control token.

        `adds_bos`: a BOS is put first unless the template writes one. NUL passes through, lone surrogates become
        U+FFFD. `tools`: as `GenerationRequest.tools`. What tools and their results say is users' text. Errors:
        `UsageError` where the template itself refuses the messages or has no place for tools, `PromptTooLong` for
        megabytes, `ModelBroken` where the template fails, leaves the sandbox or takes too much.
        """
        _check_size(len(tools) + sum(len(message.content) + len(message.tool_calls) for message in messages))
        turns = [mapped_turn(turn, _encodable) for turn in turns_of(messages, self._shape_for(messages))]
        declared = [mapped(tool, _encodable) for tool in tools_of(tools)]
        if declared and not self.takes_tools:
            raise UsageError("the model's chat template takes no tools", hint=ANOTHER_TEMPLATE)
        texts = texts_in([*turns, *declared])
        stand_ins = StandIns(self._protected, "".join((self._source, self._bos_text, self._eos_text, *texts)))

        covered = _changed(turns, declared, stand_ins.cover)
        text = self._rendered(*covered, variables or {})
        harder = _changed(*covered, stand_ins.cover_edges)
        if harder != covered:
            safe_text = self._rendered(*harder, variables or {})
            if self._protected.occurrences(text) != self._protected.occurrences(safe_text):
                text = safe_text  # with its neighbours in the prompt, users' text would have made a control token
        if adds_bos and not text.startswith(self._bos_text):
            text = self._bos_text + text
        return stand_ins.cut(text)

    @cached_property
    def takes_tools(self) -> bool:
        """Return whether tools that a request offers come into the prompt."""
        return takes_tools(self._probed)

    @cached_property
    def shown_call(self) -> str:
        """Return what a call of `probing.FUNCTION` is in a prompt, with all that follows; empty: it has no place."""
        return shown_call(self._probed, self._shape) if self._shape is not None else ""

    @cached_property
    def _shape(self) -> CallShape | None:
        return call_shape(self._probed)

    def _shape_for(self, messages: Sequence[Message]) -> CallShape:
        if not any(message.tool_calls or message.role == "tool" for message in messages):
            return CallShape()
        if self._shape is None:
            raise UsageError(
                "the model's chat template has no place for tool calls and their results", hint=ANOTHER_TEMPLATE
            )
        return self._shape

    def _probed(self, turns: list[Turn], tools: list[Json]) -> str:
        return self._rendered(turns, tools, {})

    def _rendered(self, turns: list[Turn], tools: list[Json], variables: Mapping[str, object]) -> str:
        from slm_local.template.sandbox import Refusal

        try:
            text = self._renderer.render(
                {
                    "messages": turns,
                    "bos_token": self._bos_text,
                    "eos_token": self._eos_text,
                    "add_generation_prompt": True,
                    "tools": tools or None,
                    **variables,
                }
            )
        except Refusal as error:
            raise UsageError(
                f"the model's chat template refuses this conversation: {_reason(error)}", hint=ANOTHER_TEMPLATE
            ) from error
        except Exception as error:  # foreign code: it may raise anything
            raise _broken(error) from error
        return _encodable(text)


def _changed(turns: list[Turn], tools: list[Json], change: Callable[[str], str]) -> tuple[list[Turn], list[Json]]:
    return [mapped_turn(turn, change) for turn in turns], [mapped(tool, change) for tool in tools]


def _check_size(characters: int) -> None:
    if characters > LONGEST_CONVERSATION:
        raise PromptTooLong(
            f"the conversation has {characters:,} characters, more than the {LONGEST_CONVERSATION:,} that are read",
            hint="give a shorter prompt or fewer files",
        )


def _parsed(source: str) -> Renderer:
    from slm_local.template.sandbox import Renderer

    if len(source) > LONGEST_SOURCE:
        raise ModelBroken(f"the model's chat template is {len(source):,} characters long", hint=ANOTHER_TEMPLATE)
    try:
        return Renderer(source, Limits())
    except Exception as error:  # compiling foreign code: more than syntax errors
        raise _broken(error) from error


def _broken(error: Exception) -> ModelBroken:
    line = getattr(error, "lineno", None)
    where = f" (line {line})" if line else ""
    return ModelBroken(f"the model's chat template does not work{where}: {_reason(error)}", hint=ANOTHER_TEMPLATE)


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:LONGEST_REASON]


def _encodable(text: str) -> str:
    """Return the text as UTF-8 can hold it: paired surrogates joined, lone ones as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
