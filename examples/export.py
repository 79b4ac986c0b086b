"""Export a MusicGen to ONNX, and generate from the files with onnxruntime and numpy alone.

    python examples/export.py DIR --out FOLDER [--pt2] [--text "a calm song"] [--seconds 2]

Four graphs, of plain layers, in which batch and length are dynamic:

    text_encoder   ids, mask (B, L) -> cross_keys, cross_values (layers, B, H, L, D), what cross-attention reads
    decoder_step   codes (B, K, S), keys, values (layers, B, H, P, D), cross_keys, cross_values, mask
                   -> logits (B, K, S, V), keys, values (layers, B, H, P + S, D), which the next step takes
    codec_encoder  audio (B, C, N) -> codes (B, K, T)
    codec_decoder  codes (B, K, T) -> audio (B, C, N)

and settings.json with the numbers that generate() below needs beside them. Given a text, it makes a clip greedily from
the files, in clip.wav, and compares its codes with the model's own. Needs the extra `export`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.export._patches import register_lstm_while_loop_decomposition  # the way to an LSTM of any length

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.attention import KVCache
from musicgen_ref.audio import write_wav
from musicgen_ref.decoder import Block
from musicgen_ref.encodec import Chunk, Conv

OPSET = 23


class TextEncoder(nn.Module):
    """T5, the projection, and the keys and values that every block's cross-attention makes of it once a text."""

    def __init__(self, model: MusicGen):
        super().__init__()
        self.text_encoder, self.decoder = model.text_encoder, model.decoder

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.decoder.project_text(self.text_encoder(ids, mask), mask)
        pairs = [cast(Block, block).cross_attn.keys_values(memory) for block in self.decoder.blocks]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])


class Past(KVCache):
    """A cache of tensors that come into a graph and go out of it: appended to, never written into."""

    def __init__(
        self, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor, mask: Tensor, steps: int
    ):
        self.keys, self.values = list(keys), list(values)
        self.batch, self.length = keys.shape[1], keys.shape[3]
        self.cross = list(zip(cross_keys, cross_values, strict=True))
        # A row without text may see its keys and values, which are 0 and add 0: a softmax over nothing would be NaN.
        seen = (mask > 0) | (mask.sum(1, keepdim=True) == 0)
        self.cross_mask = seen[:, None, None, :].expand(-1, -1, steps, -1)  # onnxruntime broadcasts no mask over steps

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All steps so far of one layer."""
        self.keys[layer] = torch.cat([self.keys[layer], k], dim=2)
        self.values[layer] = torch.cat([self.values[layer], v], dim=2)
        return self.keys[layer], self.values[layer]


class DecoderStep(nn.Module):
    """The decoder over the next S columns, one or more, behind P that the cache holds, none at first."""

    def __init__(self, model: MusicGen):
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self, codes: Tensor, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        past = Past(keys, values, cross_keys, cross_values, mask, codes.shape[2])
        logits = self.decoder(codes, cache=past)
        return logits, torch.stack(past.keys), torch.stack(past.values)


class CodecEncoder(nn.Module):
    """Audio at the model's sampling rate to codes, stereo channel by channel."""

    def __init__(self, model: MusicGen):
        super().__init__()
        self.codec, self.codebooks = model.codec, len(model.delays) // model.decoder.config.channels

    def forward(self, audio: Tensor) -> Tensor:
        sides = [self.codec.encode(side, self.codebooks)[0].codes for side in audio.split(1, dim=1)]
        return torch.stack([side[:, k] for k in range(self.codebooks) for side in sides], dim=1)


class CodecDecoder(nn.Module):
    """Codes to audio, stereo channel by channel."""

    def __init__(self, model: MusicGen):
        super().__init__()
        self.codec, self.channels = model.codec, model.decoder.config.channels

    def forward(self, codes: Tensor) -> Tensor:
        sides = [codes[:, side :: self.channels] for side in range(self.channels)]
        return torch.cat([self.codec.decode([Chunk(side)]) for side in sides], dim=1)


class Graph(NamedTuple):
    """A module to export: example inputs by name, the dimensions that are dynamic, and names of the outputs."""

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, Any]]
    outputs: list[str]


def graphs(model: MusicGen) -> dict[str, Graph]:
    """The four graphs by name. The examples have other sizes than 1, which an exporter would take for constants."""
    c, hop = model.decoder.config, model.codec.config.hop
    B, L, P, S, T = 2, 5, 3, 2, 2 * least_frames(model)
    batch, tokens, past, steps = Dim("batch"), Dim("tokens"), Dim("past", min=0), Dim("steps", min=1)
    frames, samples = Dim("frames", min=least_frames(model)), Dim("samples", min=least_frames(model) * hop)
    ids, mask = torch.ones(B, L, dtype=torch.long), torch.ones(B, L, dtype=torch.long)
    weight = model.decoder.norm.weight
    cached = weight.new_zeros(c.layers, B, c.heads, P, c.width // c.heads)
    cross = weight.new_zeros(c.layers, B, c.heads, L, c.width // c.heads)
    step = {"codes": torch.zeros(B, c.codebooks, S, dtype=torch.long), "keys": cached, "values": cached.clone()}
    step |= {"cross_keys": cross, "cross_values": cross.clone(), "mask": mask}
    kept: dict[str, dict[int, Any]] = {name: {1: batch, 3: past} for name in ("keys", "values")}
    read: dict[str, dict[int, Any]] = {name: {1: batch, 3: tokens} for name in ("cross_keys", "cross_values")}
    text = {"ids": {0: batch, 1: tokens}, "mask": {0: batch, 1: tokens}}
    audio = model.codec.quantizer.codebooks.new_zeros(B, c.channels, T * hop + 1)
    codes = torch.zeros(B, c.codebooks, T, dtype=torch.long)
    return {
        "text_encoder": Graph(TextEncoder(model), {"ids": ids, "mask": mask}, text, ["cross_keys", "cross_values"]),
        "decoder_step": Graph(
            DecoderStep(model), step, {"codes": {0: batch, 2: steps}, **kept, **read, "mask": text["mask"]},
            ["logits", "new_keys", "new_values"],
        ),
        "codec_encoder": Graph(CodecEncoder(model), {"audio": audio}, {"audio": {0: batch, 2: samples}}, ["codes"]),
        "codec_decoder": Graph(CodecDecoder(model), {"codes": codes}, {"codes": {0: batch, 2: frames}}, ["audio"]),
    }  # fmt: skip


def least_frames(model: MusicGen) -> int:
    """Frames from which on no convolution of the codec pads by more than it has, which is another computation."""
    convolutions = [part for part in model.codec.modules() if isinstance(part, Conv)]
    return 1 + max(max(conv.left, conv.right + conv.stride - 1) // conv.stride for conv in convolutions)


def export(graph: Graph, folder: Path, name: str, pt2: bool = False) -> None:
    """Write NAME.onnx, and NAME.pt2 where asked, which torch.export.load() opens. The codec encoder's has a guard of
    torch's own against a single row, which computes right without: load(...).module(check_guards=False)."""
    with torch.no_grad(), register_lstm_while_loop_decomposition():
        program = torch.export.export(graph.module, (), graph.inputs, dynamic_shapes=graph.dynamic)
        if pt2:
            torch.export.save(program, folder / f"{name}.pt2")
        torch.onnx.export(
            program, (), folder / f"{name}.onnx", kwargs=graph.inputs, input_names=list(graph.inputs),
            output_names=graph.outputs, opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip


def settings(model: MusicGen) -> dict[str, Any]:
    """What generate() needs to know beside the graphs."""
    c = model.decoder.config
    return {
        "delays": list(model.delays), "special_token": c.vocab_size, "sampling_rate": model.sampling_rate,
        "codes": min(c.vocab_size, model.codec.config.codebook_size),
        "frame_rate": model.sampling_rate / model.codec.config.hop, "cache": [c.layers, c.heads, c.width // c.heads],
    }  # fmt: skip


def write(model: MusicGen, folder: Path, pt2: bool = False) -> None:
    """Export all of a model that was loaded with fast=False, in fp32, into a new directory. Raises FileExistsError."""
    folder.mkdir()
    for name, graph in graphs(model).items():
        export(graph, folder, name, pt2)
    (folder / "settings.json").write_text(json.dumps(settings(model), indent=2) + "\n", encoding="utf-8")


class Onnx:
    """The files in a directory: numpy arrays in, numpy arrays out."""

    def __init__(self, folder: Path):
        self.settings: dict[str, Any] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        names = ("text_encoder", "decoder_step", "codec_encoder", "codec_decoder")
        self.sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in names}

    def run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of one of the four."""
        return list(self.sessions[name].run(None, inputs))

    def generate(self, ids: np.ndarray, mask: np.ndarray, frames: int, guidance: float = 3.0) -> np.ndarray:
        """Codes (B, K, T), greedily, of texts (B, L)."""
        delays, special = np.array(self.settings["delays"]), self.settings["special_token"]
        layers, heads, width = self.settings["cache"]
        B, K, steps = len(ids), len(delays), frames + int(delays.max())
        cross = self.run("text_encoder", ids=ids, mask=mask)
        # The second half of the batch reads no text: keys and values of 0.
        cross_keys, cross_values = (np.concatenate([part, np.zeros_like(part)], axis=1) for part in cross)
        mask = np.concatenate([mask, np.zeros_like(mask)])
        keys = values = np.zeros((layers, 2 * B, heads, 0, width), cross_keys.dtype)
        table = np.full((B, K, 1 + steps), special)  # the start column, then the delayed codes
        for step in range(steps):
            read = np.concatenate([table[:, :, step : step + 1]] * 2)
            logits, keys, values = self.run(
                "decoder_step", codes=read, keys=keys, values=values, cross_keys=cross_keys,
                cross_values=cross_values, mask=mask,
            )  # fmt: skip
            with_text, without = logits[:B, :, 0], logits[B:, :, 0]
            guided = without + guidance * (with_text - without)
            decided = guided[..., : self.settings["codes"]].argmax(-1)
            free = (step >= delays) & (step < delays + frames)
            table[:, free, step + 1] = decided[:, free]
        return np.stack([table[:, k, 1 + lag : 1 + lag + frames] for k, lag in enumerate(delays)], axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, K, T) to audio (B, C, N)."""
        return self.run("codec_decoder", codes=codes)[0]

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """Audio (B, C, N) at the model's sampling rate to codes (B, K, T)."""
        return self.run("codec_encoder", audio=audio)[0]


def main(argv: list[str] | None = None) -> None:
    """Load, export, and generate where there is a text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help='checkpoint directory, or "demo"')
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--pt2", action="store_true", help="write torch.export's programs, too")
    parser.add_argument("--text", help="make a clip of it from the files")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the clip (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        model = MusicGen.from_pretrained(args.model, fast=False)
        frames = model.frames(args.seconds)
        write(model, args.out, args.pt2)
        if args.text is None:
            return
        if model.tokenizer is None:
            raise ValueError("--text needs a checkpoint with a tokenizer: this one has none")
        ids, mask = model.tokenizer([args.text])
        files = Onnx(args.out)
        codes = files.generate(ids.numpy(), mask.long().numpy(), frames)
        own = model.generate((ids, mask), GenerationOptions(frames=frames, greedy=True, guidance_scale=3.0)).codes
        same = int((torch.from_numpy(codes) == own).all(1).sum())
        write_wav(args.out / "clip.wav", torch.from_numpy(files.decode(codes)[0]), files.settings["sampling_rate"])
        print(f"{same} of {frames} frames are those of the model itself")
    except (ValueError, OSError) as error:
        sys.exit(f"export: {error}")


if __name__ == "__main__":
    main()
