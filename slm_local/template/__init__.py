"""A conversation -> the prompt's text: chat templates (Jinja, sandboxed), users' text kept apart, thinking switched.

It knows no vocabulary but the texts of control tokens, and does not tokenize.
"""

from slm_local.template.chat import ChatTemplate
from slm_local.template.thinking import prompt_for

__all__ = ["ChatTemplate", "prompt_for"]
