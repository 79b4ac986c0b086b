"""A release in audiocraft's layout: state_dict.bin, compression_state_dict.bin, and T5 in a directory inside."""

from collections.abc import Mapping
from pathlib import Path

from ..t5 import T5Config
from ..text import Tokenizer
from . import audiocraft, huggingface
from .files import Spec, dtype_name, write_bin, write_json, write_weights

FILES = {audiocraft.CODEC: audiocraft.CODEC_FILE, audiocraft.LM: audiocraft.LM_FILE}


def write_release(
    folder: Path,
    specs: Mapping[str, Spec],
    settings: Mapping[str, str],
    text: T5Config | None,
    tokenizer: Tokenizer | None,
) -> None:
    """Write the files of a release into a folder.

    specs: the tensors under audiocraft's names. settings: the xp.cfg of each part, by the prefix of the part's names.
    text: None for an EnCodec alone.
    """

    def part(prefix: str) -> dict[str, Spec]:
        return {name.removeprefix(prefix): spec for name, spec in specs.items() if name.startswith(prefix)}

    for prefix, config in settings.items():
        content = {"best_state": part(prefix), "xp.cfg": config, "version": "1.3.0", "exported": True}
        write_bin(folder / FILES[prefix], content)
    if text is not None:
        name = audiocraft.T5_NAMES.get((text.width, text.gated), "t5-base").rpartition("/")[2]
        inside = folder / name
        inside.mkdir()
        state = part(audiocraft.TEXT)
        write_weights(inside, state)
        config_of = {"architectures": ["T5EncoderModel"], "dtype": dtype_name(state)}
        write_json(inside / "config.json", config_of | huggingface.write_text(text))
        if tokenizer is not None:
            tokenizer.save(inside)
