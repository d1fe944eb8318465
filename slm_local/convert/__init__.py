"""Makes one form of a model from another, each in a child process of its own: OpenVINO IR, another quantization."""

from slm_local.convert.checkpoint import Checkpoint, read_checkpoint, spec_of
from slm_local.convert.export import Converted, ConvertProgress, convert
from slm_local.convert.quantize import Quantized, quantize, target_types

__all__ = [
    "Checkpoint",
    "ConvertProgress",
    "Converted",
    "Quantized",
    "convert",
    "quantize",
    "read_checkpoint",
    "spec_of",
    "target_types",
]
