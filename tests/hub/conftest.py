"""Gives every test of this folder the stand-in for the Hub."""

from tests.hub.fixtures import hub

__all__ = ["hub"]
