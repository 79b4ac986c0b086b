"""EnCodec: audio to a few whole numbers per frame, and back.

B batch, C audio channels, N samples, T frames, D latent width, K codebooks, V codes per codebook.
Source: Défossez et al. 2022 (arXiv:2210.13438); the network is SEANet, Tagliasacchi et al. 2020 (arXiv:2009.02095);
numbers as transformers' EncodecModel computes them.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 100  # frames that the convolutions work on at a time


@dataclass(frozen=True)
class EncodecConfig:
    """An EnCodec; the defaults are MusicGen's: 32 kHz mono, 50 frames a second, 4 codebooks of 2048 codes.

    ratios: the decoder's upsampling factors; their product is the hop, samples per frame. bandwidths: kbit/s,
    ascending; the largest decides how many codebooks there are, the smallest is the default. norm: "weight_norm"
    (folded into the weights) or "time_group_norm". chunk_seconds and overlap: long audio is coded in pieces (48 kHz
    model); None codes it whole. Raises ValueError naming the impossible field.
    """

    sampling_rate: int = 32000
    channels: int = 1
    filters: int = 64
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    hidden: int = 128
    codebook_size: int = 2048
    bandwidths: tuple[float, ...] = (2.2,)
    causal: bool = False
    norm: str = "weight_norm"
    normalize: bool = False
    pad_mode: str = "reflect"
    conv_shortcut: bool = False
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_growth: int = 2
    compress: int = 2
    lstm_layers: int = 2
    trim_right_ratio: float = 1.0
    chunk_seconds: float | None = None
    overlap: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"EncodecConfig.{field.name} must be a positive whole number, got {value!r}")
        norms, modes = ("weight_norm", "time_group_norm"), ("reflect", "constant", "replicate")
        power = self.codebook_size & (self.codebook_size - 1) == 0
        seconds, chunked = self.chunk_seconds or 0, self.chunk_seconds is not None
        for name, ok, must in (
            ("norm", self.norm in norms, f"one of {norms}"),
            ("pad_mode", self.pad_mode in modes, f"one of {modes}"),
            ("ratios", self.ratios and all(type(r) is int and r > 0 for r in self.ratios), "positive whole numbers"),
            ("channels", self.channels <= 2, "1 or 2"),
            ("compress", self.compress <= self.filters, f"at most filters {self.filters}"),
            ("codebook_size", power and self.codebook_size > 1, "a power of 2, from 2"),
            ("trim_right_ratio", 0 <= self.trim_right_ratio <= 1, "in [0, 1]"),
            ("trim_right_ratio", self.trim_right_ratio == 1 or self.causal, "1 unless causal"),
            ("overlap", (self.overlap is not None) == chunked, "given with chunk_seconds, and only then"),
            ("overlap", self.overlap is None or 0 <= self.overlap < 1, "in [0, 1)"),
            ("chunk_seconds", not chunked or 1 <= seconds * self.sampling_rate < math.inf, "a sample or more"),
            ("bandwidths", self.bandwidths and all(0 < b < math.inf for b in self.bandwidths), "finite and above 0"),
            ("bandwidths", list(self.bandwidths) == sorted(self.bandwidths), "ascending"),
        ):
            if not ok:
                raise ValueError(f"EncodecConfig.{name} must be {must}, got {getattr(self, name)!r}")
        if self.codebooks < 1:
            raise ValueError(f"EncodecConfig.bandwidths must pay for one codebook or more, got {self.bandwidths!r}")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> int:
        """Frames per second, rounded up."""
        return math.ceil(self.sampling_rate / self.hop)

    @property
    def codebooks(self) -> int:
        """Codebooks there are."""
        return int(1000 * self.bandwidths[-1] // (self.frame_rate * math.ceil(math.log2(self.codebook_size))))

    @property
    def chunk(self) -> int:
        """Samples of a piece; 0 where audio is coded whole."""
        return int((self.chunk_seconds or 0) * self.sampling_rate)

    @property
    def chunk_stride(self) -> int:
        """Samples from the start of one piece to the start of the next."""
        return max(1, int((1.0 - (self.overlap or 0)) * self.chunk))

    def codebooks_for(self, bandwidth: float) -> int:
        """Codebooks that a bandwidth in kbit/s pays for. Raises ValueError for one the model was not trained at."""
        if bandwidth not in self.bandwidths:
            raise ValueError(f"bandwidth must be one of {self.bandwidths} kbit/s, got {bandwidth!r}")
        paid = math.floor(bandwidth * 1000 / (math.log2(self.codebook_size) * self.frame_rate))
        return min(max(1, paid), self.codebooks)


class Conv(nn.Module):
    """Convolution, of (B, C, N) or (B, C, 1, N), that pads so that N samples become ceil(N / stride); causal: all fixed
    padding on the left."""

    def __init__(
        self, config: EncodecConfig, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1
    ):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)
        self.norm = nn.GroupNorm(1, outputs) if config.norm == "time_group_norm" else nn.Identity()
        total = (kernel - 1) * dilation + 1 - stride
        self.right = 0 if config.causal else total // 2
        self.left = total - self.right
        self.mode = config.pad_mode

    def forward(self, x: Tensor) -> Tensor:
        # In whole numbers: transformers divides in fp32, which is off by up to a stride beyond 2 ** 24 samples.
        right = self.right + -x.shape[-1] % self.conv.stride[0]
        x, c = pad(x, self.left, right, self.mode) if self.left or right else x, self.conv
        if x.dim() == 4:
            return F.conv2d(x, c.weight[:, :, None], c.bias, (1, *c.stride), dilation=(1, *c.dilation))
        return self.norm(c(x))


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """F.pad that also reflects inputs shorter than the padding: zeros are appended first, and cut off again."""
    short = max(left, right) - x.shape[-1] + 1 if mode == "reflect" else 0
    sides = (left, right, 0, 0)[: 2 * x.dim() - 4]
    return F.pad(x, sides, mode) if short <= 0 else F.pad(F.pad(x, (0, short)), sides, mode)[..., :-short]


class ConvTranspose(nn.Module):
    """Transposed convolution, its kernel two strides long, trimmed so that T frames become T * stride."""

    def __init__(self, config: EncodecConfig, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride)
        self.norm = nn.GroupNorm(1, outputs) if config.norm == "time_group_norm" else nn.Identity()
        self.right = math.ceil(stride * config.trim_right_ratio) if config.causal else stride // 2
        self.left = stride - self.right

    def forward(self, x: Tensor) -> Tensor:
        c = self.conv
        x = c(x) if x.dim() == 3 else F.conv_transpose2d(x, c.weight[:, :, None], c.bias, (1, *c.stride))
        return self.norm(x)[..., self.left : x.shape[-1] - self.right]


class LSTM(nn.Module):
    """LSTM over time with a skip connection, (B, C, T) to (B, C, T)."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b c t -> t b c")
        return rearrange(self.lstm(x)[0] + x, "t b c -> b c t")


class Residual(nn.Module):
    """ELU, dilated convolution to fewer channels, ELU, convolution back, plus the input."""

    def __init__(self, config: EncodecConfig, width: int, dilation: int):
        super().__init__()
        inner = width // config.compress
        self.block = nn.Sequential(
            nn.ELU(),
            Conv(config, width, inner, config.residual_kernel, dilation=dilation),
            nn.ELU(),
            Conv(config, inner, width, 1),
        )
        self.shortcut = Conv(config, width, width, 1) if config.conv_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class SEANetEncoder(nn.Sequential):
    """Audio (B, C, N) to latents (B, D, ceil(N / hop)); layers in the order by which checkpoints name them."""

    def __init__(self, c: EncodecConfig):
        width, self.hop, self.ratio = c.filters, c.hop, c.ratios[0]
        layers: list[nn.Module] = [Conv(c, c.channels, width, c.kernel)]
        for ratio in reversed(c.ratios):
            layers += [Residual(c, width, c.dilation_growth**j) for j in range(c.residual_layers)]
            layers += [nn.ELU(), Conv(c, width, 2 * width, 2 * ratio, stride=ratio)]
            width *= 2
        super().__init__(*layers, LSTM(width, c.lstm_layers), nn.ELU(), Conv(c, width, c.hidden, c.last_kernel))

    def forward(self, x: Tensor) -> Tensor:
        *outer, elu, conv, lstm, activation, last = self
        return last(activation(lstm(conv(elu(in_windows(nn.Sequential(*outer), x, self.hop, self.ratio))))))


class SEANetDecoder(nn.Sequential):
    """Latents (B, D, T) to audio (B, C, T * hop): the encoder's mirror image."""

    def __init__(self, c: EncodecConfig):
        width, self.hop, self.ratio = c.filters * 2 ** len(c.ratios), c.hop, c.ratios[0]
        layers: list[nn.Module] = [Conv(c, c.hidden, width, c.kernel), LSTM(width, c.lstm_layers)]
        for ratio in c.ratios:
            layers += [nn.ELU(), ConvTranspose(c, width, width // 2, stride=ratio)]
            width //= 2
            layers += [Residual(c, width, c.dilation_growth**j) for j in range(c.residual_layers)]
        super().__init__(*layers, nn.ELU(), Conv(c, width, c.channels, c.last_kernel))

    def forward(self, x: Tensor) -> Tensor:
        first, lstm, elu, conv, *outer = self
        return in_windows(nn.Sequential(*outer), conv(elu(lstm(first(x)))), self.ratio, self.hop)


def in_windows(layers: nn.Sequential, x: Tensor, before: int, after: int) -> Tensor:
    """Convolutions over x (B, C, N), where it is long WINDOW frames at a time: less memory, which caches hold; and as
    (B, C, 1, N) with the channels of a position side by side in memory, as CPUs multiply them fastest.

    before, after: how many positions a frame has before the layers and after them.
    """
    frames = math.ceil(x.shape[-1] / before)
    if frames <= WINDOW or any(isinstance(layer, nn.GroupNorm) for layer in layers.modules()):  # sees all of the time
        return layers(x)
    reach, rate = 0.0, float(before)  # frames on either side that an output depends on, positions a frame
    for layer in layers.modules():
        if isinstance(layer, nn.Conv1d):
            reach += (layer.kernel_size[0] - 1) * layer.dilation[0] / rate
            rate /= layer.stride[0]
        elif isinstance(layer, nn.ConvTranspose1d):
            reach += layer.kernel_size[0] / layer.stride[0] / rate
            rate *= layer.stride[0]
    margin, parts = math.ceil(reach), []
    x = x[:, :, None].contiguous(memory_format=torch.channels_last)
    for frame in range(0, frames, WINDOW):
        start = max(0, frame - margin)
        y = layers(x[..., start * before : (frame + WINDOW + margin) * before])
        parts.append(y[..., (frame - start) * after :][..., : WINDOW * after])
    return torch.cat(parts, dim=-1)[:, :, 0]


class ResidualVectorQuantizer(nn.Module):
    """K codebooks, each coding what the ones before it left over. codebooks: (K, V, D)."""

    codebooks: Tensor

    def __init__(self, codebooks: int, size: int, width: int):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(codebooks, size, width))

    def encode(self, latents: Tensor, codebooks: int) -> Tensor:
        """Latents (B, D, T) to codes (B, codebooks, T): the nearest codeword of what is left, one codebook after
        another."""
        left = rearrange(latents, "b d t -> (b t) d")
        codes = []
        for book in self.codebooks[:codebooks]:
            # |x - e|^2 written out, in transformers' order: rounding decides near-ties, which bf16 makes common.
            distance = left.pow(2).sum(1, keepdim=True) - 2 * left @ book.t() + book.t().pow(2).sum(0, keepdim=True)
            nearest = (-distance).max(dim=-1).indices
            left = left - F.embedding(nearest, book)
            codes.append(nearest)
        return rearrange(torch.stack(codes), "k (b t) -> b k t", b=latents.shape[0])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K', T) of the first K' codebooks to latents (B, D, T): the sum of their codewords."""
        words = F.embedding(codes[:, 0], self.codebooks[0])
        for k in range(1, codes.shape[1]):
            words = words + F.embedding(codes[:, k], self.codebooks[k])
        return rearrange(words, "b t d -> b d t")


class Chunk(NamedTuple):
    """A piece of coded audio: codes (B, K, T), and its loudness (B, 1) where the codec normalises."""

    codes: Tensor
    scale: Tensor | None = None


class Encodec(nn.Module):
    """The codec: encode() to a list of chunks (one, unless long audio is coded in pieces), decode() back."""

    def __init__(self, config: EncodecConfig):
        super().__init__()
        self.config = config
        self.encoder = SEANetEncoder(config)
        self.quantizer = ResidualVectorQuantizer(config.codebooks, config.codebook_size, config.hidden)
        self.decoder = SEANetDecoder(config)

    def encode(self, audio: Tensor, codebooks: int | None = None) -> list[Chunk]:
        """Code audio (B, C, N), nominally in [-1, 1], with `codebooks` codebooks (default: those of the lowest
        bandwidth).

        Each chunk has ceil(n / hop) frames for its n samples. Zero what is padding yourself: it is coded as silence.
        Raises ValueError for a wrong shape, no samples, values that are not finite, or a number of codebooks there is
        not.
        """
        c = self.config
        check_audio(audio, c.channels)
        if audio.dtype != self.quantizer.codebooks.dtype:
            raise ValueError(f"audio must have the codec's dtype {self.quantizer.codebooks.dtype}, got {audio.dtype}")
        codebooks = c.codebooks_for(c.bandwidths[0]) if codebooks is None else codebooks
        if type(codebooks) is not int or not 1 <= codebooks <= c.codebooks:
            raise ValueError(f"codebooks must be a whole number in 1..{c.codebooks}, got {codebooks}")
        if c.chunk_seconds is None:
            return [self._encode_chunk(audio, codebooks)]
        starts = range(0, audio.shape[-1], c.chunk_stride)
        return [self._encode_chunk(audio[..., i : i + c.chunk], codebooks) for i in starts]

    def _encode_chunk(self, audio: Tensor, codebooks: int) -> Chunk:
        scale = None
        if self.config.normalize:
            mono = audio.sum(1, keepdim=True) / audio.shape[1]
            volume = mono.pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8
            audio, scale = audio / volume, volume.view(-1, 1)
        return Chunk(self.quantizer.encode(self.encoder(audio), codebooks), scale)

    def decode(self, chunks: list[Chunk]) -> Tensor:
        """Audio (B, C, N) of chunks: T * hop samples of a single one; pieces are overlapped with linear fades.

        What encode() padded on the right is not cut off: the caller knows the length. Raises ValueError for no
        chunks, more than one where the codec does not code in pieces, pieces that do not fit together, or codes of a
        wrong shape or out of range.
        """
        c = self.config
        if not chunks or (c.chunk_seconds is None and len(chunks) != 1):
            raise ValueError(f"chunks must be {'a non-empty list' if c.chunk_seconds else 'one'}, got {len(chunks)}")
        for i, (codes, scale) in enumerate(chunks):
            check_codes(codes, 1, c.codebooks, c.codebook_size)
            B, _, T = chunks[0].codes.shape
            gap = i < len(chunks) - 1 and codes.shape[2] * c.hop < c.chunk_stride  # samples that no piece would cover
            if len(codes) != B or codes.shape[2] > T or gap:
                raise ValueError(f"chunks must be pieces of one batch in order, got {tuple(codes.shape)} at {i}")
            if c.normalize and (scale is None or scale.shape != (B, 1)):
                got = None if scale is None else tuple(scale.shape)
                raise ValueError(f"chunks must have the scale {(B, 1)} of a normalising codec: scale, got {got}")
        pieces = [self._decode_chunk(chunk) for chunk in chunks]
        return pieces[0] if c.chunk_seconds is None else overlap_add(pieces, c.chunk_stride)

    def _decode_chunk(self, chunk: Chunk) -> Tensor:
        audio = self.decoder(self.quantizer.decode(chunk.codes))
        return audio if chunk.scale is None else audio * chunk.scale.view(-1, 1, 1)


def check_audio(audio: Tensor, channels: int) -> None:
    """Raise ValueError unless audio is floating point, finite and (B, channels, N) with N > 0."""
    if audio.dim() != 3 or audio.shape[1] != channels or audio.numel() == 0 or not audio.is_floating_point():
        got = f"{audio.dtype} {tuple(audio.shape)}"
        raise ValueError(f"audio must be floating point of shape (B, {channels}, N) with N > 0, got {got}")
    if not torch.isfinite(audio).all():
        raise ValueError("audio must be finite, got NaN or infinity")


def check_codes(codes: Tensor, fewest: int, most: int, size: int) -> None:
    """Raise ValueError unless codes are int64 or int32, (B, fewest..most, T) with T > 0, and below size."""
    whole = codes.dtype in (torch.int64, torch.int32)
    if not whole or codes.dim() != 3 or not fewest <= codes.shape[1] <= most or codes.numel() == 0:
        books, got = fewest if fewest == most else f"{fewest}..{most}", f"{codes.dtype} {tuple(codes.shape)}"
        raise ValueError(f"codes must be int64 or int32 of shape (B, {books}, T) with T > 0, got {got}")
    if not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise ValueError(f"codes must be in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}")


def overlap_add(pieces: list[Tensor], stride: int) -> Tensor:
    """Join pieces (B, C, n) that start `stride` samples apart, each weighted by a triangle over its length."""
    total = stride * (len(pieces) - 1) + pieces[-1].shape[-1]
    t = torch.linspace(0, 1, pieces[0].shape[-1] + 2, device=pieces[0].device, dtype=pieces[0].dtype)[1:-1]
    triangle = 0.5 - (t - 0.5).abs()
    out = pieces[0].new_zeros(*pieces[0].shape[:-1], total)
    weight = pieces[0].new_zeros(total)
    for i, piece in enumerate(pieces):
        # Padded up to whole frames, a piece may end after the last one, by less than a hop: nothing was coded there.
        n = min(piece.shape[-1], total - i * stride)
        out[..., i * stride : i * stride + n] += triangle[:n] * piece[..., :n]
        weight[i * stride : i * stride + n] += triangle[:n]
    return out / weight
