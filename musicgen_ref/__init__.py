"""MusicGen in plain PyTorch: readable, equal to Hugging Face transformers, offline."""

from .decoder import DecoderConfig
from .encodec import EncodecConfig
from .model import Generated, GenerationOptions, MusicGen
from .t5 import T5Config

__version__ = "0.2.0"
__all__ = [
    "DecoderConfig",
    "EncodecConfig",
    "Generated",
    "GenerationOptions",
    "MusicGen",
    "T5Config",
    "__version__",
]
