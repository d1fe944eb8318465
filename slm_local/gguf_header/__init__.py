"""A bounded reader of GGUF headers: facts for fit and speed, faults named, before native code sees a file.

It maps nothing, reads no weights and knows no runtime: `source` gives bytes, `reader` bounds and places, `values`
types, `checks` refuses, `facts` concludes, `cache` remembers.
"""

from __future__ import annotations

from slm_local.gguf_header.cache import checked_header, keep, recall
from slm_local.gguf_header.facts import GgufHeader, read_header
from slm_local.gguf_header.source import Bytes, Files

__all__ = ["Bytes", "Files", "GgufHeader", "checked_header", "keep", "read_header", "recall"]
