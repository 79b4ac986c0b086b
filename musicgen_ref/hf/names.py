"""The modules inside a model under transformers' names: a tree of views, which own no weights.

peft, hooks, freezing and pruning find modules by names like decoder.model.decoder.layers.0.self_attn.q_proj. A view is
a module that stands for one of ours, its `core`; its children are modules of ours or views of them. nn.Module keeps its
children in a mapping. That of a view (Slots) reads and writes the attributes of our modules: setting the q_proj above
sets decoder.blocks.0.self_attn.q, which is the module that runs and is saved. So both names always mean the same.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from .. import attention, decoder, encodec, t5


class Slot(NamedTuple):
    """Where a child of a view is in our modules: at `name` in `root`; "" is the root itself.

    view: makes the view that is shown instead of the module; None shows the module itself. taken: called after another
    module has been set, with that module (or its view) and with the module of ours that was there before.
    """

    root: nn.Module
    name: str
    view: Callable[[Any], nn.Module] | None = None
    taken: Callable[[Any, Any], None] | None = None

    def read(self) -> Any:
        owner, _, last = self.name.rpartition(".")
        return getattr(self.root.get_submodule(owner), last) if last else self.root

    def write(self, module: Any) -> None:
        owner, _, last = self.name.rpartition(".")
        setattr(self.root.get_submodule(owner), last, module)


class Slots(MutableMapping[str, Any]):
    """The children of a view by transformers' names, each in a slot. If `grows` is set, other children can be added,
    which are kept in here.

    Raises ValueError for a module that cannot take the place of the present one, AttributeError for an unknown name.
    """

    def __init__(self, slots: Mapping[str, Slot], grows: bool):
        self.slots, self.grows = dict(slots), grows
        self.added: dict[str, Any] = {}
        self.views: dict[str, Any] = {}  # made at the first access, and again when the core has been replaced

    def __getitem__(self, name: str) -> Any:
        if name not in self.slots:
            return self.added[name]
        slot = self.slots[name]
        module = slot.read()
        if slot.view is None or module is None:
            return module
        if name not in self.views or self.views[name].core is not module:
            self.views[name] = slot.view(module)
        return self.views[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.slots:
            if not self.grows:
                raise AttributeError(f"there is no part {name!r} that could be set; there are {[*self.slots]}")
            self.added[name] = value
            return
        slot = self.slots[name]
        there = slot.read()
        own = value if slot.view is None else ours(name, value, there)
        if slot.name:
            slot.write(own)
        elif own is not there:
            raise ValueError(f"{name} cannot be another one: set what is inside it, {[*self[name]._modules]}")
        if slot.view is not None and getattr(value, "core", None) is own:
            self.views[name] = value
        if slot.taken is not None:
            slot.taken(self[name], there)

    def __delitem__(self, name: str) -> None:
        if name not in self.added:
            raise AttributeError(f"{name} cannot be taken out; a list of layers can be set to a shorter nn.ModuleList")
        del self.added[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.slots, *self.added])

    def __len__(self) -> int:
        return len(self.slots) + len(self.added)

    def __contains__(self, name: object) -> bool:
        return name in self.slots or name in self.added

    def outside(self) -> list[nn.Module]:
        """The modules that are in none of ours: added ones, and wrappers (peft's) that were set as parts."""
        return [*self.added.values(), *(view for view in self.views.values() if not isinstance(view, Around))]


def ours(name: str, value: Any, there: nn.Module) -> nn.Module:
    """The module of ours in a value that is to replace the module `there`. The value may be a module of ours, a view of
    one, or a wrapper (peft's) around a view.

    Raises ValueError where it has no module of the same kind.
    """
    if isinstance(value, Around):
        found: Any = value.core
    elif isinstance(there, nn.ModuleList) and isinstance(value, (nn.ModuleList, nn.Sequential)):
        kind = there[0] if len(there) else nn.Module()
        return nn.ModuleList(ours(f"{name}.{i}", each, kind) for i, each in enumerate(value))
    elif isinstance(value, type(there)):
        found = value
    else:
        inside = value.modules() if isinstance(value, nn.Module) else ()
        found = next((view.core for view in inside if isinstance(view, Around)), None)
    if not isinstance(found, type(there)):
        kind_of = f"{type(there).__module__}.{type(there).__name__}"
        raise ValueError(f"{name} must be made around a {kind_of}, got {type(value).__name__}")
    return found


class Around(nn.Module):
    """A module around one of ours, its core. The core's parts are its children; train(), to() and their like reach the
    core."""

    core: Any
    _modules: Any

    def __init__(self, core: nn.Module, slots: Mapping[str, Slot], grows: bool = False):
        super().__init__()
        # The core is not a child itself: its modules are, under other names.
        vars(self).update(core=core, _modules=Slots(slots, grows))

    @property
    def training(self) -> bool:
        return bool(self.core.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "core" in vars(self):  # nn.Module.__init__() sets it when there is no core yet
            self.core.training = mode

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "core" and "core" in vars(self):
            raise AttributeError("there is no part 'core' that could be set: set the parts, or make another model")
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Any:
        for module in (self.core, *self._modules.outside()):
            module.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for module in (self.core, *self._modules.outside()):
            module._apply(fn, recurse)
        return self


class View(Around):
    """A module inside a model. A call of it calls the core; its hooks are registered on the core, and get the core's
    arguments.

    stands: whether the core is the module that transformers has under this name. Some names have no module of ours, as
    the two halves of a T5 block: such a view cannot be called.
    """

    def __init__(self, core: nn.Module, slots: Mapping[str, Slot], stands: bool = True):
        super().__init__(core, slots)
        vars(self).update(stands=stands)
        if stands:
            vars(self).update(_parameters=core._parameters, _buffers=core._buffers)

    def _called(self) -> Any:
        if not self.stands:
            raise ValueError(f"no module runs under this name: call or hook what is inside it, {[*self._modules]}")
        return self.core

    def forward(self, *args: Any, **options: Any) -> Any:
        return self._called()(*args, **options)

    def register_forward_hook(self, hook: Any, **options: Any) -> Any:
        return self._called().register_forward_hook(hook, **options)

    def register_forward_pre_hook(self, hook: Any, **options: Any) -> Any:
        return self._called().register_forward_pre_hook(hook, **options)

    def register_full_backward_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self._called().register_full_backward_hook(hook, prepend)

    def register_full_backward_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self._called().register_full_backward_pre_hook(hook, prepend)


class Views(Around, nn.ModuleList):
    """A list of views. To make it shorter or longer, set an nn.ModuleList of some of its entries in its place."""

    def __getitem__(self, index: Any) -> Any:
        return nn.ModuleList([*self][index]) if isinstance(index, slice) else super().__getitem__(index)


def same(core: nn.Module, *names: str, **others: str) -> dict[str, Slot]:
    """Slots of children that are shown themselves, under our names. others: transformers' name = our name."""
    return {theirs: Slot(core, name) for theirs, name in (dict(zip(names, names, strict=True)) | others).items()}


# The decoder


def decoder_slots(core: decoder.Decoder) -> dict[str, Slot]:
    """The children of transformers' MusicgenDecoder. The heads and the projection of the text are not among them."""
    return same(core, embed_tokens="embed", layer_norm="norm") | {"layers": Slot(core, "blocks", layers)}


def layers(blocks: nn.ModuleList) -> Views:
    return Views(blocks, {name: Slot(blocks, name, layer) for name, _ in blocks.named_children()})


def layer(block: decoder.Block) -> View:
    attentions = {"self_attn": "self_attn", "encoder_attn": "cross_attn"}
    norms = same(block, self_attn_layer_norm="self_norm", encoder_attn_layer_norm="cross_norm")
    return View(
        block,
        {theirs: Slot(block, name, projections) for theirs, name in attentions.items()}
        | norms
        | same(block, "fc1", "fc2", final_layer_norm="ffn_norm"),
    )


def projections(core: attention.Attention) -> View:
    return View(core, same(core, q_proj="q", k_proj="k", v_proj="v", out_proj="out"))


# The text encoder


def stack_slots(core: t5.T5Encoder) -> dict[str, Slot]:
    """The children of transformers' T5Stack."""
    blocks = Slot(core, "blocks", partial(t5_blocks, core))
    return same(core, embed_tokens="embed", final_layer_norm="norm") | {"block": blocks}


def t5_blocks(encoder: t5.T5Encoder, blocks: nn.ModuleList) -> Views:
    first = {"0": Slot(blocks, "0", partial(t5_block, encoder))}  # only this one has the table of relative positions
    return Views(blocks, {name: Slot(blocks, name, t5_block_without) for name, _ in blocks.named_children()} | first)


def t5_block_without(block: t5.Block) -> View:
    return t5_block(None, block)


def t5_block(encoder: t5.T5Encoder | None, block: t5.Block) -> View:
    return View(block, {"layer": Slot(block, "", partial(t5_halves, encoder))})


def t5_halves(encoder: t5.T5Encoder | None, block: t5.Block) -> Views:
    return Views(block, {"0": Slot(block, "", partial(t5_attention, encoder)), "1": Slot(block, "", t5_feed_forward)})


def t5_attention(encoder: t5.T5Encoder | None, block: t5.Block) -> View:
    attend = Slot(block, "attn", partial(t5_projections, encoder))
    return View(block, {"SelfAttention": attend} | same(block, layer_norm="attn_norm"), stands=False)


def t5_projections(encoder: t5.T5Encoder | None, core: attention.Attention) -> View:
    table = {} if encoder is None else same(encoder, relative_attention_bias="relative_bias")
    return View(core, same(core, "q", "k", "v", o="out") | table)


def t5_feed_forward(block: t5.Block) -> View:
    return View(block, {"DenseReluDense": Slot(block, "ffn", dense)} | same(block, layer_norm="ffn_norm"), stands=False)


def dense(core: t5.FeedForward) -> View:
    inner = {"wi": "wi"} if core.gate is None else {"wi_0": "gate", "wi_1": "wi"}
    return View(core, same(core, **inner, wo="wo"))


# The codec


def codec_slots(core: encodec.Encodec) -> dict[str, Slot]:
    """The children of transformers' EncodecModel."""
    return {
        "encoder": Slot(core, "encoder", seanet),
        "decoder": Slot(core, "decoder", seanet),
        "quantizer": Slot(core, "quantizer", Quantizer),
    }


def seanet(core: nn.Module) -> View:
    return View(core, {"layers": Slot(core, "")})


class Quantizer(View):
    """The residual vector quantiser, whose codes are (K, B, T) here."""

    def __init__(self, core: encodec.ResidualVectorQuantizer):
        super().__init__(core, {"layers": Slot(core, "", codebooks)})

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        """The codes (K, B, T) of latents (B, Z, T), in all codebooks. Raises ValueError for a bandwidth."""
        if bandwidth is not None:
            raise ValueError("bandwidth must be None here: EncodecModel.encode(audio, bandwidth=) takes one")
        return rearrange(self.core.encode(embeddings, len(self.core.codebooks)), "b k t -> k b t")

    def decode(self, codes: Tensor) -> Tensor:
        """The latents (B, Z, T) of codes (K, B, T)."""
        return self.core.decode(rearrange(codes, "k b t -> b k t"))


def codebooks(core: encodec.ResidualVectorQuantizer) -> Views:
    each = {str(k): Slot(core, "", partial(quantization, k)) for k in range(len(core.codebooks))}
    return Views(core, each)


def quantization(k: int, core: encodec.ResidualVectorQuantizer) -> View:
    return View(core, {"codebook": Slot(core, "", partial(Codebook, k))}, stands=False)


class Codebook(View):
    """One of the K codebooks, which are a single tensor in our codec."""

    def __init__(self, k: int, core: encodec.ResidualVectorQuantizer):
        super().__init__(core, {}, stands=False)
        vars(self).update(k=k)

    @property
    def embed(self) -> Tensor:
        """The codewords (V, Z). Writing into them, or setting them, changes the codec."""
        return self.core.codebooks[self.k]

    @embed.setter
    @torch.no_grad()
    def embed(self, words: Tensor) -> None:
        self.core.codebooks[self.k] = words
