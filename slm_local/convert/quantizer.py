"""The child that quantizes: llama.cpp's own quantizer on one file; `python -m slm_local.convert.quantizer JSON`.

llama.cpp's log, a line a tensor, goes to descriptor 2, which is the parent's pipe. Exit status 0 when done.
"""

from __future__ import annotations

import json
import os
import sys

from slm_local.backends.llamacpp.library import bindings, quiet_log
from slm_local.convert.child import enter


def main(order: dict[str, object]) -> int:
    """Quantize as ordered (`source`, `target`, `file_type`, `threads`, `allow_requantize`); return the status."""
    library = bindings()
    quiet_log(library)
    params = library.llama_model_quantize_default_params()
    params.ftype = order["file_type"]
    params.nthread = order["threads"]
    params.allow_requantize = order["allow_requantize"]
    source, target = (os.fsencode(str(order[name])) for name in ("source", "target"))
    return int(library.llama_model_quantize(source, target, params))


if __name__ == "__main__":
    enter()
    sys.exit(main(json.loads(sys.argv[1])))
