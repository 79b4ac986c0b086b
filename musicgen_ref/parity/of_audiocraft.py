"""The stages of audiocraft 1.3, as a recording.

audiocraft wants releases of torch and transformers that musicgen_ref does not, so this file also runs by itself in an
environment of audiocraft's: it imports that, torch and safetensors, and nothing of ours.

    musicgen-ref record RELEASE -o ours.safetensors                                    # in one
    cd RELEASE && python of_audiocraft.py ours.safetensors -o theirs.safetensors       # in the other
    musicgen-ref parity RELEASE --against theirs.safetensors                           # in the one again

RELEASE: a directory with state_dict.bin and compression_state_dict.bin, or with the latter alone, which is an EnCodec.
Of T5 audiocraft knows the name alone, t5-base, which is looked for in the directory in which this runs.

It lets padded text into the softmax of a batch, so every row is computed alone here, without its padding. It draws from
sorted probabilities, so its samples are other ones under the same seed: they are left out.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Stage = tuple[str, Tensor]


@torch.no_grad()
def of_text(lm: Any, given: dict[str, Tensor], numbers: dict[str, Any]) -> Iterator[Stage]:
    """Ids, states after every block, and what the decoder reads."""
    conditioner = lm.condition_provider.conditioners["description"]
    ids, mask = given["ids"], given["mask"]
    yield "text.ids", conditioner.tokenize(numbers["captions"])["input_ids"]
    hidden = conditioner.t5(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for i, states in enumerate(hidden):
        yield "text.embeddings" if i == 0 else f"text.block.{i - 1}", states * mask[..., None]
    yield "memory", conditioner({"input_ids": ids, "attention_mask": mask})[0]


def logits(lm: Any, table: Tensor, text: tuple[Tensor, Tensor]) -> Any:
    """(1, K, S, V) of one row, which reads memory (1, L, E) under a mask (1, L)."""
    return lm(table, [], {"description": text})


@torch.no_grad()
def of_decoder(lm: Any, given: dict[str, Tensor], numbers: dict[str, Any], memory: Tensor) -> Iterator[Stage]:
    """The delay pattern, states after every block, logits, greedy codes."""
    codes, table = given["codes"], given["table"].split(1)
    pattern = lm.pattern_provider.get_pattern(codes.shape[2])
    yield "delay", pattern.build_pattern_sequence(codes, lm.special_token_id)[0]

    lengths = given["mask"].sum(1).tolist()
    texts = [(memory[b : b + 1, :length], torch.ones(1, length)) for b, length in enumerate(lengths)]
    nothing = torch.zeros_like(memory[:1, :1]), torch.zeros(1, 1)
    seen: dict[str, list[Tensor]] = {}
    layers = lm.transformer.layers
    hooks = [layers[0].register_forward_pre_hook(lambda _, read: seen.setdefault("embeddings", []).append(read[0]))]
    for i, layer in enumerate([*layers[:-1], lm.out_norm]):  # of the last block the output, normalised
        kept = seen.setdefault(f"block.{i}", [])
        hooks.append(layer.register_forward_hook(lambda _, read, made, kept=kept: kept.append(made)))
    whole = torch.cat([logits(lm, row, text) for row, text in zip(table, texts, strict=True)])
    for hook in hooks:
        hook.remove()
    for name, states in seen.items():
        yield f"decoder.{name}", torch.cat(states)
    yield "decoder.logits", whole
    yield "decoder.logits_without_text", torch.cat([logits(lm, row, nothing) for row in table])

    cached = []
    for row, text in zip(table * 2, [*texts, *[nothing] * len(table)], strict=True):
        with lm.streaming():
            cached.append(torch.cat([logits(lm, column, text) for column in row.split(1, dim=2)], dim=2))
    yield "decoder.logits_cached", torch.cat(cached)
    cond, null = torch.cat(cached).chunk(2)
    yield "guided.logits", null + (cond - null) * numbers["guidance"]
    from audiocraft.modules.conditioners import ConditioningAttributes

    rows = [ConditioningAttributes(text={"description": caption}) for caption in numbers["captions"]]
    length, guidance = codes.shape[2], numbers["guidance"]
    greedy = [lm.generate(None, [row], max_gen_len=length, use_sampling=False, cfg_coef=guidance) for row in rows]
    yield "greedy.codes", torch.cat(greedy)


@torch.no_grad()
def of_codec(codec: Any, given: dict[str, Tensor]) -> Iterator[Stage]:
    """The codec's latents, codes and audio; then of the decoder's codes, channel by channel."""
    yield "codec.latents", codec.encoder(given["audio"])
    yield "codec.codes", codec.encode(given["audio"])[0]
    yield "codec.quantized", codec.quantizer.decode(given["codec_codes"])
    yield "codec.audio", codec.decode(given["codec_codes"])
    if "codes" not in given:  # an EnCodec alone
        return
    codes = given["codes"]
    channels = codes.shape[1] // given["codec_codes"].shape[1]
    yield "audio", torch.cat([codec.decode(codes[:, side::channels]) for side in range(channels)], dim=1)


def main() -> None:
    """Read the inputs of a recording, run every stage, write another one."""
    from audiocraft import __version__
    from audiocraft.models.loaders import load_compression_model, load_lm_model

    parser = argparse.ArgumentParser(description="The stages of audiocraft, of the release in this directory.")
    parser.add_argument("inputs", type=Path, help="a recording, whose inputs are used")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    with safe_open(args.inputs, "pt") as opened:
        manifest = json.loads(opened.metadata()["manifest"])
        given = {name[6:]: opened.get_tensor(name) for name in opened.offset_keys() if name.startswith("input.")}
    stages: dict[str, Tensor] = {}
    if "codes" in given:
        lm = load_lm_model(Path.cwd())
        stages |= of_text(lm, given, manifest["inputs"])
        stages |= of_decoder(lm, given, manifest["inputs"], stages["memory"])
    stages |= of_codec(load_compression_model(Path.cwd()), given)
    by = f"audiocraft {__version__}"
    manifest["about"] = {"by": by, "dtype": "float32", "device": "cpu", "torch": torch.__version__}
    manifest["stages"] = {name: {"shape": list(tensor.shape)} for name, tensor in stages.items()}
    tensors = stages | {f"input.{name}": tensor for name, tensor in given.items()}
    kept = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(kept, args.output, {"manifest": json.dumps(manifest)})


if __name__ == "__main__":
    main()
