"""The name table: what applies it, on small tables; and the table itself, at the public models' real sizes."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import AutoConfig, MusicgenForConditionalGeneration
from transformers import MusicgenConfig as TheirConfig

from musicgen_ref import MusicGen
from musicgen_ref.checkpoint import huggingface, mapping
from musicgen_ref.checkpoint.mapping import Fused, Piece, Row, WeightNorm

NORM = WeightNorm(r"\1.g", r"\1.v")


class Tensors(dict[str, Tensor]):
    """A reader of tensors in memory that notes what was read, in order, and what was to be left in the file."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__(tensors)
        self.reads: list[str] = []
        self.mapped: set[str] = set()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: tensor.dtype for name, tensor in self.items()}

    def get(self, name: str, mapped: bool = False) -> Tensor:  # type: ignore[override]
        self.reads.append(name)
        if mapped:
            self.mapped.add(name)
        return self[name]


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# expand()


def test_groups_of_our_name_fill_in_theirs() -> None:
    table: list[Row] = [(r"a\.(\d+)\.(w|b)", r"layers.\1.block.\2")]
    assert mapping.expand(table, {"a.0.w": (2, 3), "a.12.b": (3,)}) == {
        "layers.0.block.w": Piece((2, 3), "a.0.w"),
        "layers.12.block.b": Piece((3,), "a.12.b"),
    }


def test_a_row_matches_whole_names_and_the_first_row_wins() -> None:
    table: list[Row] = [("a", "short"), (r"a\.b", "first"), (r"a\..", "second")]
    pieces = mapping.expand(table, {"a": (1,), "a.b": (1,), "a.c": (1,)})
    assert {theirs: piece.ours for theirs, piece in pieces.items()} == {"short": "a", "first": "a.b", "second": "a.c"}


@pytest.mark.parametrize("name", ["b", "a.x", "xa", "aa"])
def test_a_name_without_a_row_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"name table.*{re.escape(name)}$"):
        mapping.expand([("a", "x")], {"a": (1,), name: (1,)})


@pytest.mark.parametrize(
    "shape, count, part",
    [
        ((12, 5), 4, (3, 5)),  # a matrix: blocks of rows
        ((4, 5), 4, (1, 5)),
        ((5, 5), 1, (5, 5)),
        ((1, 5), 1, (1, 5)),
        ((4, 6, 5), 4, (6, 5)),  # a stack: its entries
        ((1, 6, 5), 1, (6, 5)),
        ((4, 4, 5), 4, (4, 5)),
    ],
)
def test_parts_are_blocks_of_rows_or_entries_of_a_stack(
    shape: tuple[int, ...], count: int, part: tuple[int, ...]
) -> None:
    pieces = mapping.expand([("a", ("x.{k}", count))], {"a": shape})
    assert pieces == {f"x.{k}": Piece(part, "a", part=k) for k in range(count)}


def test_a_weight_norm_is_a_magnitude_and_a_direction() -> None:
    pieces = mapping.expand([(r"(c)\.weight", NORM)], {"c.weight": (6, 4, 3)})
    norm = WeightNorm("c.g", "c.v")
    assert pieces == {
        "c.g": Piece((6, 1, 1), "c.weight", norm=norm),
        "c.v": Piece((6, 4, 3), "c.weight", norm=norm),
    }


QKV: list[Row] = [(rf"(\d+)\.{part}", Fused(r"\1.in", i, 3)) for i, part in enumerate("qkv")]


@pytest.mark.parametrize("order", ["qkv", "vkq", "kvq"])
def test_what_is_fused_is_stacked_in_the_tables_order(order: str) -> None:
    pieces = mapping.expand(QKV, {f"0.{part}": (4, 5) for part in order})
    assert {name: (piece.shape, piece.fused) for name, piece in pieces.items()} == {
        "0.in": ((12, 5), ("0.q", "0.k", "0.v"))
    }


# check()

PIECES = {"x": Piece((2, 3), "a"), "y": Piece((4,), "b"), "z": Piece((), "c")}


def test_what_fits_is_accepted() -> None:
    mapping.check(PIECES, {"x": (2, 3), "y": (4,), "z": ()}, "here")
    mapping.check({}, {}, "here")


@pytest.mark.parametrize(
    "got, listed",
    [
        ({"x": (2, 3), "y": (4,)}, "1 missing: z"),
        ({"x": (2, 3)}, "2 missing: y, z"),
        ({"x": (2, 3), "y": (4,), "z": (), "w": (1,), "q": (1,)}, "2 left over: q, w"),
        ({"x": (3, 2), "y": (4,), "z": ()}, "1 of a wrong shape: x (3, 2), expected (2, 3)"),
        (
            {"x": (6,), "y": (4, 1), "z": (1,)},
            "3 of a wrong shape: x (6,), expected (2, 3), y (4, 1), expected (4,), z",
        ),
        ({"x": (3, 2), "w": (1,), "z": ()}, "1 left over: w; 1 missing: y; 1 of a wrong shape: x (3, 2)"),
    ],
)
def test_everything_that_does_not_fit_is_in_one_error(got: dict[str, tuple[int, ...]], listed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(listed)) as caught:
        mapping.check(PIECES, got, "here")
    assert str(caught.value).startswith("here: ")


def test_what_is_left_over_stands_beside_the_nearest_that_is_missing() -> None:
    pieces = {name: Piece((1,), name) for name in ("layers.0.norm1.weight", "layers.1.norm1.weight", "out")}
    with pytest.raises(ValueError, match="left over") as caught:
        mapping.check(pieces, {"layers.0.norm_1.weight": (1,), "zzz": (1,), "out": (1,)}, "here")
    message = str(caught.value)
    nearest = "layers.0.norm1.weight or layers.1.norm1.weight"
    assert f"2 left over: layers.0.norm_1.weight (nearest missing: {nearest}), zzz;" in message
    assert "2 missing: layers.0.norm1.weight, layers.1.norm1.weight" in message


def test_a_thousand_names_that_do_not_fit_are_listed_at_once() -> None:
    pieces = {f"layers.{i}.weight": Piece((1,), "a") for i in range(3000)}
    with pytest.raises(ValueError, match="3000 left over"):
        mapping.check(pieces, {f"layers.{i}.weights": (1,) for i in range(3000)}, "here")


# read() and collect()

TABLE: list[Row] = [
    (r"plain\.(\w+)", r"model.\1"),
    ("heads", ("head.{k}.weight", 3)),
    ("books", ("book.{k}", 2)),
    (r"(conv|up)\.weight", NORM),
    *((rf"attn\.{part}", Fused("attn.in", i, 3)) for i, part in enumerate("qkv")),
]


def state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"plain.w": (3, 2), "plain.b": (3,), "heads": (12, 5), "books": (2, 6, 4)}
    shapes |= {"conv.weight": (4, 3, 5), "up.weight": (6, 2, 4)}
    shapes |= {f"attn.{part}": (4, 3) for part in "kqv"}
    return {name: random(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


def test_collected_tensors_are_those_that_the_names_say() -> None:
    ours = state()
    theirs = mapping.collect(ours, mapping.expand(TABLE, shapes(ours)))
    assert torch.equal(theirs["model.w"], ours["plain.w"]) and torch.equal(theirs["model.b"], ours["plain.b"])
    assert torch.equal(torch.cat([theirs[f"head.{k}.weight"] for k in range(3)]), ours["heads"])
    assert torch.equal(torch.stack([theirs[f"book.{k}"] for k in range(2)]), ours["books"])
    for name in ("conv", "up"):
        norm = ours[f"{name}.weight"].flatten(1).norm(dim=1).view(-1, 1, 1)
        torch.testing.assert_close(theirs[f"{name}.g"], norm, rtol=1e-6, atol=0)  # another order of summation
    assert torch.equal(theirs["attn.in"], torch.cat([ours[f"attn.{part}"] for part in "qkv"]))
    assert len(theirs) == 2 + 3 + 2 + 2 * 2 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_collect_then_read_gives_back_every_bit(dtype: torch.dtype) -> None:
    ours = state(dtype)
    pieces = mapping.expand(TABLE, shapes(ours))
    theirs = Tensors(mapping.collect(ours, pieces))
    mapping.check(pieces, theirs.shapes, "here")
    back = mapping.read(ours, pieces, theirs)
    assert back.keys() == ours.keys()
    for name in ours:
        assert torch.equal(back[name], ours[name]), name


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_read_takes_each_tensor_once_in_the_dtype_that_is_asked_for(device: str) -> None:
    ours = state()
    pieces = mapping.expand(TABLE, shapes(ours))
    theirs = Tensors(mapping.collect(ours, pieces))
    like = {name: torch.empty_like(tensor, dtype=torch.bfloat16, device="meta") for name, tensor in ours.items()}
    half = mapping.read(like, pieces, theirs, device)
    assert sorted(theirs.reads) == sorted(theirs) and half.keys() == ours.keys()
    for name in ours:
        assert half[name].device.type == device and half[name].dtype == torch.bfloat16
        assert device == "meta" or torch.equal(half[name], ours[name].bfloat16()), name


def test_read_leaves_what_others_own() -> None:
    ours = state()
    pieces = mapping.expand(TABLE, shapes(ours))
    theirs = Tensors(mapping.collect(ours, pieces))
    few = mapping.read({name: ours[name] for name in ("attn.k", "heads")}, pieces, theirs)
    assert sorted(few) == ["attn.k", "heads"] and all(torch.equal(few[name], ours[name]) for name in few)
    assert sorted(theirs.reads) == ["attn.in", "head.0.weight", "head.1.weight", "head.2.weight"]
    assert few["attn.k"].untyped_storage().nbytes() == few["attn.k"].nbytes  # and does not keep the others alive


def test_what_has_the_right_dtype_is_left_in_the_file_where_that_is_asked_for() -> None:
    ours = state()
    pieces = mapping.expand(TABLE, shapes(ours))
    stored = mapping.collect(ours, pieces)
    like = {name: tensor.half() if name in ("plain.w", "books") else tensor for name, tensor in ours.items()}
    whole, copied = Tensors(stored), Tensors(stored)
    mapping.read(like, pieces, whole, mapped=True)
    assert whole.mapped == set(stored) - {"model.w", "book.0", "book.1", "conv.g", "up.g"}  # g: folded at once
    mapping.read(like, pieces, copied)
    assert copied.mapped == set()


def test_collect_shares_no_memory_among_its_tensors_and_no_gradient() -> None:
    ours = {name: nn.Parameter(tensor) for name, tensor in state().items()}
    theirs = mapping.collect(ours, mapping.expand(TABLE, shapes(ours)))
    assert len({tensor.untyped_storage().data_ptr() for tensor in theirs.values()}) == len(theirs)
    assert not any(tensor.requires_grad for tensor in theirs.values())


# translate()

# The same names of ours as TABLE, laid out in another way.
OTHER: list[Row] = [
    (r"plain\.(\w+)", r"other.\1"),
    ("heads", ("out.{k}", 3)),
    ("books", ("code.{k}.embed", 2)),
    (r"(conv|up)\.weight", WeightNorm(r"\1.weight_g", r"\1.weight_v")),
    (r"attn\.(\w)", r"attention.\1_proj"),
]


@pytest.mark.parametrize("there, back", [(TABLE, OTHER), (OTHER, TABLE)], ids=["split", "fused"])
def test_a_translation_there_and_back_keeps_every_bit(there: list[Row], back: list[Row]) -> None:
    ours = state()
    one, other = (mapping.expand(table, shapes(ours)) for table in (there, back))
    first = Tensors(mapping.collect(ours, one))
    first["conv.weight_g" if "conv.weight_g" in first else "conv.g"] *= 3  # folded, it would not come back
    steps = mapping.translate(one, other)
    assert steps.keys() == other.keys()
    second = Tensors({name: mapping.assemble(origins, first) for name, origins in steps.items()})
    mapping.check(other, second.shapes, "here")
    third = {name: mapping.assemble(origins, second) for name, origins in mapping.translate(other, one).items()}
    assert third.keys() == first.keys() and all(torch.equal(third[name], first[name]) for name in first)
    for name in ("heads", "books", "attn.q"):  # and what each side gives a model is the same
        filled = mapping.read(ours, one, first), mapping.read(ours, other, second)
        assert torch.equal(filled[0][name], filled[1][name]) and torch.equal(filled[0][name], ours[name])


def test_a_part_that_the_other_layout_lacks_is_refused() -> None:
    one = mapping.expand([("a", ("x.{k}", 2))], {"a": (4, 3)})
    with pytest.raises(ValueError, match=r"y holds .*'a'"):
        mapping.translate(one, mapping.expand([("a", "y")], {"a": (4, 3)}))


# Weight norm


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_folded_weight_is_what_torch_computes(kind: type[nn.Conv1d], dtype: torch.dtype) -> None:
    conv = parametrizations.weight_norm(kind(6, 4, 5))
    parts = conv.parametrizations["weight"]
    with torch.no_grad():
        parts.original0.copy_(random(*parts.original0.shape, seed=1).abs())
        parts.original1.copy_(random(*parts.original1.shape, seed=2))
    stored = conv.to(dtype).state_dict()
    theirs = Tensors(
        {"c.g": stored["parametrizations.weight.original0"], "c.v": stored["parametrizations.weight.original1"]}
    )
    pieces = mapping.expand([(r"(c)\.weight", NORM)], {"c.weight": tuple(conv.weight.shape)})
    mapping.check(pieces, theirs.shapes, "here")
    ours = mapping.read({"c.weight": torch.empty(conv.weight.shape, dtype=dtype)}, pieces, theirs)
    # In fp32, then rounded once, where torch computes in the dtype of the parts.
    assert torch.equal(ours["c.weight"], conv.float().weight.to(dtype))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_torch_computes_the_weight_from_the_split(kind: type[nn.Conv1d]) -> None:
    weight = random(*kind(6, 4, 5).weight.shape) * torch.logspace(-6, 6, 5)
    pieces = mapping.expand([(r"(c)\.weight", NORM)], {"c.weight": tuple(weight.shape)})
    theirs = mapping.collect({"c.weight": weight}, pieces)
    conv = parametrizations.weight_norm(kind(6, 4, 5))
    parts = {"original0": theirs["c.g"], "original1": theirs["c.v"]}
    conv.load_state_dict({f"parametrizations.weight.{name}": part for name, part in parts.items()}, strict=False)
    assert torch.equal(conv.weight, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (64, 1, 7), (3, 128, 3), (256, 64, 8)])
def test_split_and_folded_again_a_weight_is_the_same_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours = {"c.weight": random(*shape, seed=3, dtype=dtype)}
    pieces = mapping.expand([(r"(c)\.weight", NORM)], shapes(ours))
    back = mapping.read(ours, pieces, Tensors(mapping.collect(ours, pieces)))
    assert torch.equal(back["c.weight"], ours["c.weight"])


@pytest.mark.parametrize("value", [0.0, 1e-30])  # whose square is 0 too
def test_a_filter_without_a_norm_survives(value: float) -> None:
    weight = random(4, 3, 5)
    weight[1] = value
    pieces = mapping.expand([(r"(c)\.weight", NORM)], {"c.weight": (4, 3, 5)})
    ours = {"c.weight": weight}
    back = mapping.read(ours, pieces, Tensors(mapping.collect(ours, pieces)))
    keep = [0, 2, 3]
    assert torch.equal(back["c.weight"][keep], weight[keep])
    torch.testing.assert_close(back["c.weight"][1], weight[1], rtol=0, atol=1e-29)


# transformers' names


@pytest.mark.parametrize(
    "name, expected",
    [
        ("decoder.model.decoder.embed_positions.weights", None),
        ("audio_encoder.quantizer.layers.3.codebook.inited", None),
        ("audio_encoder.quantizer.layers.12.codebook.cluster_size", None),
        ("audio_encoder.quantizer.layers.0.codebook.embed_avg", None),
        ("audio_encoder.quantizer.layers.0.codebook.embed", "audio_encoder.quantizer.layers.0.codebook.embed"),
        ("a.conv.weight_g", "a.conv.parametrizations.weight.original0"),
        ("a.conv.weight_v", "a.conv.parametrizations.weight.original1"),
        ("text_encoder.encoder.embed_tokens.weight", "text_encoder.shared.weight"),
        ("text_encoder.shared.weight", "text_encoder.shared.weight"),
        ("decoder.model.decoder.embed_tokens.0.weight", "decoder.model.decoder.embed_tokens.0.weight"),
        ("embed_positions.weights", "embed_positions.weights"),
        ("anything.else", "anything.else"),
    ],
)
def test_a_tensor_has_one_name_today(name: str, expected: str | None) -> None:
    assert huggingface.current_name(name) == expected


def real_config(size: str, gated: bool = False) -> TheirConfig:
    """The configuration of facebook/musicgen-{size}, whose text encoder is t5-base (gated: flan-t5-base)."""
    name, _, channels = size.partition("-")
    width, layers, heads = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32)}[name]
    stereo = channels == "stereo"
    text = AutoConfig.for_model(
        "t5", d_model=768, d_kv=64, d_ff=2048 if gated else 3072, num_layers=12, num_heads=12, vocab_size=32128,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    codec = AutoConfig.for_model(
        "encodec", sampling_rate=32000, target_bandwidths=[2.2], upsampling_ratios=[8, 5, 4, 4], num_filters=64,
        codebook_size=2048, codebook_dim=128, use_causal_conv=False, use_conv_shortcut=False, normalize=False,
    )  # fmt: skip
    decoder = AutoConfig.for_model(
        "musicgen_decoder", hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * width,
        num_codebooks=8 if stereo else 4, audio_channels=2 if stereo else 1,
    )  # fmt: skip
    parts = {"text_encoder": text, "audio_encoder": codec, "decoder": decoder}
    return TheirConfig(**{part: config.to_dict() for part, config in parts.items()})


@pytest.mark.parametrize(
    "size, gated",
    [(f"{size}{channels}", False) for size in ("small", "medium", "large") for channels in ("", "-stereo")]
    + [("small", True)],
)
def test_every_tensor_of_a_public_model_has_one_name_and_shape_on_each_side(size: str, gated: bool) -> None:
    config = real_config(size, gated)
    with torch.device("meta"):  # no memory is taken
        theirs = MusicgenForConditionalGeneration(config).state_dict()
        configs = huggingface.read_config(config.to_dict(), "config.json")
        ours = MusicGen(*configs).state_dict()
    assert all(tensor.is_meta for tensor in ours.values())
    named = {name: huggingface.current_name(name) for name in theirs}
    # The one tensor that transformers lists under two names; then what is no part of the model.
    assert named["text_encoder.encoder.embed_tokens.weight"] == "text_encoder.shared.weight" in theirs
    statistics = [name for name, new in named.items() if new is None]
    assert len(statistics) == 3 * 4 and all(".codebook." in name for name in statistics)

    pieces = mapping.expand(huggingface.table(*configs), shapes(ours))
    assert {name: piece.shape for name, piece in pieces.items()} == {
        new: tuple(theirs[name].shape) for name, new in named.items() if new is not None
    }
    assert {piece.ours for piece in pieces.values()} == ours.keys()
    # Nothing of ours is filled twice or in part: together its pieces have its size (a weight norm's, plus magnitudes).
    filled = dict.fromkeys(ours, 0)
    for name, piece in pieces.items():
        if piece.norm is None or name == piece.norm.v:
            filled[piece.ours] += theirs[name].numel()
    assert filled == {name: tensor.numel() for name, tensor in ours.items()}
