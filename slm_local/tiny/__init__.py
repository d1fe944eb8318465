"""What are the embedded models? Two small Llamas, trained here from scratch, with all that made and measured them.

The package at run time needs only the files under `weights/`; everything else repeats or measures them.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder with the two shipped GGUF files and the OpenVINO tokenizer."""

REASONER = "tiny-reasoner"
DIRECT = "tiny-direct"
