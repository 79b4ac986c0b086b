"""Loading a MusicGen from a checkpoint directory, and saving it as one.

Every tensor must fit. One tensor is in memory at a time, and a directory is moved into place when it is complete.
"""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import checks
from ..decoder import DecoderConfig
from ..encodec import Encodec, EncodecConfig
from ..fast import speed_up
from ..fast.int8 import quantize
from ..model import MusicGen
from ..t5 import Block, T5Config
from ..text import Tokenizer
from . import audiocraft, huggingface, mapping, source
from .adapter import files_in as adapter_files
from .atomic import CONFIG, beside, steady, unfinished
from .files import WEIGHT_FILES, Choice, Spec, write_json, write_weights
from .release import write_release

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEMO = Path(__file__).parent.with_name("demo")  # the small checkpoint that ships with the package


def load(
    path: str | PathLike[str],
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    text_encoder: str | PathLike[str] | None = None,
    codec: str | PathLike[str] | None = None,
    adapter: bool | str | PathLike[str] | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    fast: bool = True,
    defaults: bool = True,
) -> MusicGen:
    """Read a MusicGen saved by transformers (4.x, 5.x, the Hub's older files), audiocraft or save(), in eval mode.

    path: a directory, or "demo" for the small model that ships with the package (a directory of that name is "./demo").
    dtype: the dtype of the weights in memory, whatever the file has: float32, bfloat16 or float16 (in which T5's `wo`
    stays float32, as in transformers 5). "int8" quantises the linear layers one after another as they are read, and
    leaves the rest float32; it is for CPUs, see fast/int8.py.
    fast: True puts in the faster layers of fast/, which compute the same numbers but for rounding; False leaves the
    plain ones.
    text_encoder, codec: the directories of the parts that audiocraft's files name instead of holding them: always T5,
    sometimes the codec. None looks for a directory of that name inside `path` and beside it.
    defaults: True reads temperature, top_k, top_p and guidance_scale of generation_config.json, where there is one,
    into the model's defaults; False leaves that file alone.
    Three arguments are for a directory in transformers' layout. adapter: True merges the LoRA adapter that lies beside
    the weights into them, a path merges the adapter in that directory, and False ignores an adapter beside the weights,
    which is otherwise an error. variant: "fp32" reads model.fp32.safetensors or its like. use_safetensors: False reads
    .bin files, True refuses them.

    Weight norm is folded. Tensors of a .safetensors file that keep their dtype and device are mapped into memory: the
    system reads a page when it is first used, and copies it when it is first written to. So do not write into such a
    file while the model is in use; it is safe to move another file into its place, as save() does.
    All files come from one save: where save() replaces the directory while it is being read, it is read again. A
    directory in which the files were replaced one by one, and not all of them yet, is refused (see atomic.py).
    Raises FileNotFoundError for a directory or file that is not there; ValueError for malformed JSON, for an impossible
    configuration, and for tensors that are left over, missing or of a wrong shape. One message lists them all, or the
    first dozens and how many more there are.
    """
    others = {"text_encoder": text_encoder, "codec": codec}
    checks.paths(path=path, **{name: each for name, each in others.items() if each is not None})
    path = DEMO if path == "demo" else Path(path)
    int8 = dtype == "int8"
    dtype = torch.float32 if int8 else dtype
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES} or 'int8', got {dtype!r}")
    try:
        if torch.empty(0, device=str(device)).is_meta:
            raise RuntimeError("weights have no values there")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch has here, got {device!r}: {error}") from None
    choice = Choice(variant, use_safetensors, adapter)

    def read() -> MusicGen:
        opened = source.open_source(path, text_encoder, codec, choice=choice)
        model = cast(MusicGen, opened.skeleton())
        if defaults:
            model.defaults = source.read_defaults(path)
        pieces = opened.pieces(model.state_dict())
        model.tokenizer = opened.read_tokenizer()
        to_dtype(model, dtype)

        def fill(part: nn.Module, prefix: str = "") -> None:
            source.fill(part, pieces, opened.tensors, prefix=prefix, device=device, mapped=not int8)

        if int8:
            quantize(model, fill)
        fill(model)
        return model

    model = steady(path, read)
    return (speed_up(model) if fast else model).eval()


def to_dtype(part: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of a MusicGen or of one of its parts; where they become float16, T5's `wo` is float32."""
    part.to(dtype)
    if dtype == torch.float16:
        for block in part.modules():
            if isinstance(block, Block):
                block.ffn.wo.float()


def load_codec(
    path: str | PathLike[str], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Encodec:
    """Read the EnCodec of a directory that holds one, alone or in a MusicGen; its layers are the plain ones, in eval
    mode. Raises as load() does."""
    opened = source.open_source(path, alone=True)
    module = opened.skeleton().to(dtype)
    source.fill(module, opened.pieces(module.state_dict()), opened.tensors, device=device)
    return cast(Encodec, module.get_submodule("codec")).eval()


LAYOUTS = ("transformers", "audiocraft")


def save(
    model: MusicGen,
    path: str | PathLike[str],
    layout: str = "transformers",
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, and its tokenizer if it has one, as a directory that load() opens.

    layout: "transformers", which transformers opens too, or "audiocraft", the authors' own, which has a place for any
    delay pattern but none for the model's defaults. generation: the content of generation_config.json, which only
    transformers' layout has; None writes 30 seconds, drawn, with guidance 3, and over these the model's defaults.

    The files are written into a folder beside `path` and moved into place when all are complete; files of other names
    in `path` stay. On Linux the two directories exchange their names in one step, so that every reader, also after the
    process was killed, finds the old model or the new one. In some cases the files have to be moved one by one: on
    other systems, on file systems without that step, and where the directory is a mount point, the working directory of
    this process, or holds directories of the user's own. Until the last file has been moved, load() and transformers
    refuse the directory; if the process is killed before that, the model has to be saved again. See atomic.py.

    Raises ValueError for a model that the layout has no place for, for parts that do not fit together, where `path`
    holds files that would be read instead of the new ones (weights under other names, another layout, an adapter, a
    processor_config.json for other audio), and where a directory has the name of one of the files; FileNotFoundError
    where the directory above `path` is not there; OSError where nothing can be written, which names the file if the
    disk is full. After an error nothing has changed.
    """
    checks.paths(path=path)
    path = Path(path)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    text, decoder, codec = model.text_encoder.config, model.decoder.config, model.codec.config
    checks.parts(text, decoder, codec)
    table = (audiocraft if layout == "audiocraft" else huggingface).table(text, decoder, codec)
    tensors = to_layout(model.state_dict(), table, skeleton(text, decoder, codec))
    notice = [CONFIG] if unfinished(path) else []  # where saving was stopped, the new files replace it
    stale = [name for name in STALE[layout] if (path / name).exists() and name not in notice]
    if stale:
        raise ValueError(f"path {path} holds other weights, {stale}: remove them or choose another directory")
    check_adapter(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {path.parent}")
    if model.tokenizer is None and Tokenizer.lies_in(path):
        raise ValueError(f"path {path} holds a tokenizer, this model has none: remove it or choose another directory")
    if layout == "audiocraft":
        settings = {
            audiocraft.CODEC: audiocraft.write_codec(codec),
            audiocraft.LM: audiocraft.write_decoder(text, decoder, codec),
        }
        specs = specs_of(tensors)
        with beside(path, sum(spec.size for spec in specs.values())) as folder:
            write_release(folder, specs, settings, text, model.tokenizer)
        return
    dtype = str(model.decoder.norm.weight.dtype).removeprefix("torch.")
    if generation is None:
        said = {name: value for name in checks.LEFT_OPEN if (value := getattr(model.defaults, name)) is not None}
        generation = huggingface.write_generation(decoder, codec, **said)
    files = {
        CONFIG: huggingface.write_config(text, decoder, codec, dtype),
        "generation_config.json": generation,
        "preprocessor_config.json": write_processor(path, decoder, codec),
    }
    write_directory(path, tensors, files, model.tokenizer)


STALE = {"transformers": WEIGHT_FILES[1:], "audiocraft": [CONFIG, *WEIGHT_FILES]}
SHARD = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")


def write_processor(path: Path, decoder: DecoderConfig, codec: EncodecConfig) -> dict[str, Any]:
    """The content of a directory's preprocessor_config.json. Raises ValueError where the directory has a
    processor_config.json, which is read in its place, for other audio."""
    if (other := source.first_processor(path)) is not None:
        source.check_processor(*other, {"feature_size": decoder.channels, "sampling_rate": codec.sampling_rate})
    return huggingface.write_processor(decoder.channels, codec, processor_class="MusicgenProcessor")


def write_directory(
    path: Path,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Mapping[str, Any]],
    tokenizer: Tokenizer | None = None,
    *,
    shard_size: int | None = None,
    safetensors: bool = True,
    over: bool = False,
) -> None:
    """Write tensors, JSON files and a tokenizer as a directory of transformers, whose files appear together.

    shard_size: the most bytes of a shard, None for one file. safetensors: False writes .bin files. over: True removes
    the weights that the directory holds under other names.
    """
    specs = specs_of(tensors)
    there = [file.name for file in path.iterdir()] if over and path.is_dir() else []
    gone = [name for name in there if name in WEIGHT_FILES or SHARD.fullmatch(name)]
    with beside(path, sum(spec.size for spec in specs.values()), drop=gone) as folder:
        write_weights(folder, specs, shard_size, safetensors)
        for name, content in files.items():
            write_json(folder / name, content)
        if tokenizer is not None:
            tokenizer.save(folder)


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Tensors that are in memory already, as the functions that write files take them."""
    return {name: Spec(t.dtype, tuple(t.shape), t.contiguous) for name, t in tensors.items()}


def skeleton(text: T5Config, decoder: DecoderConfig, codec: EncodecConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a MusicGen of these sizes, by our names."""
    with source.without_values():
        return {name: tuple(tensor.shape) for name, tensor in MusicGen(text, decoder, codec).state_dict().items()}


def to_layout(
    state: Mapping[str, Tensor], table: list[mapping.Row], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Our tensors as another layout has them: under the names of its table, and with the codebooks' statistics.

    shapes: those that the configuration implies. Raises ValueError where the tensors have others: a part was replaced
    by one of other sizes, or an adapter has put layers of its own into the model.
    """
    wrong = sorted(n for n in state.keys() ^ shapes.keys() if "lora_" not in n)
    wrong += [f"{n} {tuple(state[n].shape)}" for n in shapes if n in state and tuple(state[n].shape) != shapes[n]]
    adapter = "" if all(".base_layer." not in n for n in state) else " (merge the adapter first: merge_and_unload())"
    if wrong:
        some = ", ".join(wrong[:5])
        raise ValueError(f"the model's tensors must be those of its configuration, differ in {some}{adapter}")
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    tensors = mapping.collect(state, mapping.expand(table, dict(shapes)))
    return tensors | statistics({n: t for n, t in tensors.items() if n.endswith(("codebook.embed", "_codebook.embed"))})


def check_adapter(path: Path) -> None:
    """Raise ValueError for a directory with an adapter, since that belongs to other weights than the new ones."""
    if files := adapter_files(path):
        raise ValueError(f"path {path} holds an adapter, {files}: remove it or choose another directory")


def statistics(books: dict[str, Tensor]) -> dict[str, Tensor]:
    """The statistics from training that both layouts keep beside each codebook, as if every codeword had been used
    once."""
    out: dict[str, Tensor] = {}
    for name, book in books.items():
        prefix = name.removesuffix("embed")
        out |= {prefix + "inited": book.new_ones(1), prefix + "cluster_size": book.new_ones(len(book))}
        out[prefix + "embed_avg"] = book.clone()
    return out
