"""MusicGen in plain PyTorch: readable, equal to Hugging Face transformers, offline."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoder import DecoderConfig
    from .encodec import EncodecConfig
    from .model import Generated, GenerationOptions, MusicGen
    from .t5 import T5Config

__version__ = "0.3.0"
__all__ = [
    "DecoderConfig",
    "EncodecConfig",
    "Generated",
    "GenerationOptions",
    "MusicGen",
    "T5Config",
    "__version__",
]

HOMES = {
    "DecoderConfig": "decoder",
    "EncodecConfig": "encodec",
    "Generated": "model",
    "GenerationOptions": "model",
    "MusicGen": "model",
    "T5Config": "t5",
}
MODULES = ("attention", "checks", "decoder", "delay", "encodec", "model", "sampling", "t5")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name when it is first used. The imports take seconds, and the command line must be running before
        them: only so can it answer Ctrl-C in that time with a line instead of a traceback."""
        if name in MODULES:
            return import_module(f".{name}", __name__)
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{HOMES[name]}", __name__), name)

    def __dir__() -> list[str]:
        return sorted({*__all__, *MODULES})
