"""Which Hub, whether it may be asked, and the way there: what the environment says, read when it is needed."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from slm_local.errors import DownloadFailed
from slm_local.sanitize import one_line

HUB = "https://huggingface.co"

OFFLINE_VARIABLES = ("SLM_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""What may forbid the network: our setting's own variable, then the two that the library heeds by itself."""


def is_loopback(host: str | None) -> bool:
    """Tell whether a host is this machine itself, the only one that may speak plain http."""
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def endpoint_of(given: str) -> str:
    """Return the Hub's address from what HF_ENDPOINT holds; plain http only for this machine itself."""
    endpoint = given.strip().rstrip("/") or HUB
    try:
        parts = urlsplit(endpoint)
        is_whole = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        is_whole = False
    if not is_whole or parts.username is not None or parts.password is not None:
        raise DownloadFailed("HF_ENDPOINT is not the address of a Hub", hint=unsetting("HF_ENDPOINT"))
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise DownloadFailed(
            f"HF_ENDPOINT must be an https address, not {one_line(endpoint)}", hint=unsetting("HF_ENDPOINT")
        )
    return endpoint


def offline_variable() -> str | None:
    """Return the name of the variable that forbids the network to the Hub's library; None where none does."""
    return next((name for name in OFFLINE_VARIABLES[1:] if _is_on(name)), None)


def what_forbids(is_offline: bool) -> str | None:
    """Return what forbids the network, given the setting `offline`: a variable's name or the flag; None where nothing.

    The setting does not say where it was set: its own variable is named where that is on.
    """
    if not is_offline:
        return offline_variable()
    return OFFLINE_VARIABLES[0] if _is_on(OFFLINE_VARIABLES[0]) else "--offline (or offline in config.toml)"


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def unsetting(variable: str) -> str:
    """Return the line that takes a variable away."""
    return f"Remove-Item Env:{variable}" if sys.platform == "win32" else f"unset {variable}"


def opened(http: ModuleType, **options: Any) -> Any:
    """Return a client of httpx, or of httpx2, which huggingface_hub 2 uses.

    It trusts what the operating system trusts, which holds what a company's network needs, and goes through the
    proxies that the environment names; `DownloadFailed` where those can't be used.
    """
    import ssl

    import truststore

    try:
        return http.Client(verify=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT), **options)
    except (ImportError, ValueError, http.InvalidURL) as error:
        hint = "pip install socksio" if isinstance(error, ImportError) else unsetting("HTTPS_PROXY")
        raise DownloadFailed(
            f"the proxy that the environment names can't be used: {type(error).__name__}", hint=hint
        ) from None
