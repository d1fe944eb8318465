"""Reads and checks models.toml and the user's own; resolves model references; knows a registry model's file again."""

from slm_local.registry.catalogue import Registry, load_registry
from slm_local.registry.folders import spec_for_folder
from slm_local.registry.local import find_local, scan
from slm_local.registry.recognise import derived_thinking, spec_for_file
from slm_local.registry.references import RefKind, Resolved

__all__ = [
    "RefKind",
    "Registry",
    "Resolved",
    "derived_thinking",
    "find_local",
    "load_registry",
    "scan",
    "spec_for_file",
    "spec_for_folder",
]
