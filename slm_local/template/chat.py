"""One model's chat template: messages -> runs of prompt text, in which users' text never becomes a control token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from slm_local.errors import ModelBroken, PromptTooLong, UsageError
from slm_local.generation import Message, PromptRun, ReasoningTags
from slm_local.template.limits import Limits
from slm_local.template.standins import Protected, StandIns, protected_texts

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
        self, messages: Sequence[Message], *, adds_bos: bool, variables: Mapping[str, object] | None = None
    ) -> tuple[PromptRun, ...]:
        """Return the prompt up to where the model goes on; a single run where users' text looks like no control token.

        `adds_bos`: a BOS is put first unless the template writes one. NUL passes through, lone surrogates become
        U+FFFD. Errors: `UsageError` where the template itself refuses the messages, `PromptTooLong` for megabytes,
        `ModelBroken` where the template fails, leaves the sandbox or takes too much.
        """
        contents = [_encodable(message.content) for message in messages]
        size = sum(map(len, contents))
        if size > LONGEST_CONVERSATION:
            raise PromptTooLong(
                f"the conversation has {size:,} characters, more than the {LONGEST_CONVERSATION:,} that are read",
                hint="give a shorter prompt or fewer files",
            )
        stand_ins = StandIns(self._protected, "".join((self._source, self._bos_text, self._eos_text, *contents)))

        def rendered(texts: Sequence[str]) -> str:
            turns = [{"role": message.role, "content": text} for message, text in zip(messages, texts, strict=True)]
            return self._rendered(turns, variables or {})

        covered = [stand_ins.cover(content) for content in contents]
        text = rendered(covered)
        harder = [stand_ins.cover_edges(content) for content in covered]
        if harder != covered:
            safe_text = rendered(harder)
            if self._protected.occurrences(text) != self._protected.occurrences(safe_text):
                text = safe_text  # with its neighbours in the prompt, users' text would have made a control token
        if adds_bos and not text.startswith(self._bos_text):
            text = self._bos_text + text
        return stand_ins.cut(text)

    def _rendered(self, turns: list[dict[str, str]], variables: Mapping[str, object]) -> str:
        from slm_local.template.sandbox import Refusal

        try:
            text = self._renderer.render(
                {
                    "messages": turns,
                    "bos_token": self._bos_text,
                    "eos_token": self._eos_text,
                    "add_generation_prompt": True,
                    "tools": None,
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
