"""Where a remote engine is and which key it gets. The key leaves this module in one header only."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from slm_local.download.address import is_loopback
from slm_local.errors import RemoteFailed, UsageError
from slm_local.sanitize import one_line, shell_word

KEY_VARIABLE = "SLM_REMOTE_KEY"
"""Whose value is sent where an entry names no variable of its own. OPENAI_API_KEY is sent only where one names it: it
belongs to one company, and addresses are typed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server's address as it was given, and what follows from it."""

    base: str
    """With /v1, where it was given."""
    model: str
    key_env: str
    key: str = field(default="", repr=False)

    @property
    def root(self) -> str:
        """Return the address without /v1, below which a server's own routes are."""
        return self.base.removesuffix("/v1")

    @property
    def host(self) -> str:
        """Return the host with its port, for sentences."""
        return urlsplit(self.base).netloc.rpartition("@")[2]

    @property
    def is_here(self) -> bool:
        """Return whether it is this machine itself."""
        return is_loopback(urlsplit(self.base).hostname)

    @property
    def sends_key_openly(self) -> bool:
        """Return whether a key goes over a network unencrypted."""
        return bool(self.key) and self.base.startswith("http://") and not self.is_here

    @property
    def again(self) -> str:
        """Return the reference, as it is typed."""
        return shell_word(f"{self.base}#{self.model}")

    def setting_key(self) -> str:
        """Return what to type to give a key."""
        return f"$env:{self.key_env}='KEY'" if sys.platform == "win32" else f"export {self.key_env}=KEY"

    def without_key(self, text: str) -> str:
        """Return a text from elsewhere as one line, in which the key is not."""
        return one_line(text.replace(self.key, "…") if self.key else text, 300)


def address_of(url: str, model: str, key_env: str = "", environment: Mapping[str, str] | None = None) -> Address:
    """Return the address of a model. Errors: `RemoteFailed` for a variable that an entry names and that is not set."""
    environment = os.environ if environment is None else environment
    if urlsplit(url).username is not None:
        raise UsageError(
            "a remote engine's address holds no name and no password: they would be shown",
            hint=f"put the key in {key_env or KEY_VARIABLE}",
        )
    key = environment.get(key_env or KEY_VARIABLE, "").strip()
    address = Address(base=url.rstrip("/"), model=model, key_env=key_env or KEY_VARIABLE, key=key)
    if key_env and not key:
        raise RemoteFailed(
            f"the key for {address.host} is to be in the variable {key_env}, which is not set",
            hint=address.setting_key(),
        )
    if not key.isascii() or any(char.isspace() for char in key):
        raise RemoteFailed(f"what {address.key_env} holds can't be a key", hint=address.setting_key())
    return address
