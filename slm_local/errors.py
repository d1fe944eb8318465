"""What can go wrong: one tree of errors, each with a message, a hint that can be typed, and an exit code.

The exit codes are the command line's contract (docs/cli.md). An error that happened in a child process crosses
the pipe as a `FailureRecord` and is raised again in the parent as the same class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRecord:
    """An error as plain values: what crosses the pipe and what `--json` prints."""

    type: str
    message: str
    hint: str | None
    exit_code: int


class SlmError(Exception):
    """Base of every error a user may see; itself a bug of ours (exit 1)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def record(self) -> FailureRecord:
        """Return the error as values."""
        return FailureRecord(type=type(self).__name__, message=self.message, hint=self.hint, exit_code=self.exit_code)


class UsageError(SlmError):
    """The command or the call was not one that can be carried out."""

    exit_code = 2


class UnknownModel(UsageError):
    """No model of that name is known here."""


class ConfigError(UsageError):
    """A configuration or registry file is not what it should be."""


class DownloadFailed(SlmError):
    """A file could not be fetched or is not here and may not be fetched."""

    exit_code = 3


class EngineMissing(SlmError):
    """The runtime that would be needed is not installed."""

    exit_code = 4


class ModelBroken(SlmError):
    """The model's file is damaged, unsupported or not a model."""

    exit_code = 5


class DoesNotFit(SlmError):
    """The model and its context need more memory than there is."""

    exit_code = 5


class PromptTooLong(SlmError):
    """The prompt leaves no room in the context; carries both counts in its message."""

    exit_code = 6


class RemoteFailed(SlmError):
    """A remote engine answered with an error or not at all."""

    exit_code = 7

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        """What HTTP said, where that is what went wrong; it does not cross a pipe."""


class ServerBusy(SlmError):
    """So many requests wait for a model already that no more are taken."""

    exit_code = 7


class WorkerCrashed(SlmError):
    """The child process that holds the model died."""

    exit_code = 8


class Interrupted(SlmError):
    """The person stopped it before there was anything to keep."""

    exit_code = 130


def error_classes() -> dict[str, type[SlmError]]:
    """Return every error class by its name."""
    found: dict[str, type[SlmError]] = {}
    todo: list[type[SlmError]] = [SlmError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo.extend(cls.__subclasses__())
    return found


def error_of(record: FailureRecord) -> SlmError:
    """Make the exception that a record was taken from; an unknown type becomes a plain `SlmError`."""
    return error_classes().get(record.type, SlmError)(record.message, hint=record.hint)
