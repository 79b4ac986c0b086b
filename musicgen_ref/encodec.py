"""EnCodec: audio to a few whole numbers per frame, and back.

    audio (B, C, N) --SEANetEncoder--> latents (B, Z, T) --quantise--> codes (B, K, T)
    codes (B, K, T) --look up, sum--> latents (B, Z, T) --SEANetDecoder--> audio (B, C, N)

Residual vector quantisation: the first codebook names the codeword nearest to a latent, the second the one nearest to
what is left over, and so on. K codebooks of V words tell V ** K latents apart, at the price of K look-ups. In the codec
of MusicGen a frame of 640 samples becomes 4 codes of 11 bits; at 50 frames a second that is 4 * 11 * 50 = 2,200 bits a
second, where the samples had 32,000 * 16.

Weight norm writes a filter as a length times a direction, w = g * v / |v|, so that training moves the two apart. To run
the network it is just a filter: here the two are folded into one when a checkpoint is read, once, in fp32.

B batch, C audio channels, N samples (between layers: positions), T frames, Z latent width, K codebooks, V codes per
codebook. Source: Défossez et al. 2022 (arXiv:2210.13438), sections 3.1 and 3.2; the network is SEANet, Tagliasacchi et
al. 2020 (arXiv:2009.02095); numbers as transformers' EncodecModel computes them.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from . import checks


@dataclass(frozen=True)
class EncodecConfig:
    """An EnCodec; the defaults are MusicGen's: 32 kHz mono, 50 frames a second, 4 codebooks of 2048 codes.

    ratios: the decoder's upsampling factors; their product is the hop, samples per frame. codebooks, bandwidths: how
    many codebooks there are, or the kbit/s at which the codec may be used, ascending, of which the largest pays for all
    codebooks and the smallest is the default; each follows from the other (replace() must set both), and without
    both there are 4. norm: "weight_norm" (folded into the weights) or "time_group_norm". chunk_seconds and overlap:
    long audio is coded in pieces (48 kHz model); None codes it whole. Raises ValueError naming the impossible field.
    """

    sampling_rate: int = 32000
    channels: int = 1
    filters: int = 64
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    hidden: int = 128
    codebook_size: int = 2048
    bandwidths: tuple[float, ...] = ()
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
    codebooks: int = 0

    def __post_init__(self) -> None:
        checks.sizes(self, unset="codebooks")
        for name in ("ratios", "bandwidths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        checks.encodec_config(self)
        object.__setattr__(self, "bandwidths", self.bandwidths or (price(self.codebooks or 4, self.bitrate),))
        paid = int(1000 * self.bandwidths[-1] // self.bitrate)
        object.__setattr__(self, "codebooks", self.codebooks or paid)
        checks.encodec_codebooks(self, paid)

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> int:
        """Frames per second, rounded up."""
        return math.ceil(self.sampling_rate / self.hop)

    @property
    def bitrate(self) -> int:
        """Bits a second of one codebook: 11 for each of 50 frames in MusicGen's, whose 4 codebooks make 2,200."""
        return self.frame_rate * math.ceil(math.log2(self.codebook_size))

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
        checks.bandwidth(self, bandwidth)
        paid = math.floor(bandwidth * 1000 / (math.log2(self.codebook_size) * self.frame_rate))
        return min(max(1, paid), self.codebooks)


def price(codebooks: int, bitrate: int) -> float:
    """The least bandwidth in kbit/s that pays for so many codebooks."""
    kbits = codebooks * bitrate / 1000
    while 1000 * kbits // bitrate < codebooks:  # rounded down to a number that pays for one less
        kbits = math.nextafter(kbits, math.inf)
    return kbits


class Conv(nn.Module):
    """Convolution of (B, C, N) that pads so that N positions become ceil(N / stride); causal: all fixed padding on the
    left."""

    def __init__(
        self, config: EncodecConfig, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1
    ):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)
        self.norm = nn.GroupNorm(1, outputs) if config.norm == "time_group_norm" else nn.Identity()
        total = (kernel - 1) * dilation + 1 - stride
        self.right = 0 if config.causal else total // 2
        self.left = total - self.right
        self.stride, self.mode = stride, config.pad_mode

    def padding(self, samples: int) -> tuple[int, int]:
        """How many positions are added on the left and on the right of `samples`; the last stride is filled up."""
        # In whole numbers: transformers divides in fp32, which is off by up to a stride beyond 2 ** 24 samples.
        return self.left, self.right + -samples % self.stride

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(pad(x, *self.padding(x.shape[-1]), self.mode)))


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """F.pad that also reflects inputs shorter than the padding: zeros are appended first, and cut off again."""
    N = x.shape[-1]
    if mode == "reflect" and (left >= N or right >= N):
        short = max(left, right) - N + 1
        return F.pad(F.pad(x, (0, short)), (left, right), mode)[..., :-short]
    return F.pad(x, (left, right), mode) if left or right else x


class ConvTranspose(nn.Module):
    """Transposed convolution, its kernel two strides long, trimmed so that T frames become T * stride."""

    def __init__(self, config: EncodecConfig, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride)
        self.norm = nn.GroupNorm(1, outputs) if config.norm == "time_group_norm" else nn.Identity()
        self.right = math.ceil(stride * config.trim_right_ratio) if config.causal else stride // 2
        self.left = stride - self.right

    def forward(self, x: Tensor) -> Tensor:
        return self.trim(self.norm(self.conv(x)))

    def trim(self, x: Tensor) -> Tensor:
        return x[..., self.left : x.shape[-1] - self.right]


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
    """Audio (B, C, N) to latents (B, Z, ceil(N / hop)).

    Each strided convolution makes fewer positions of twice as many channels; the LSTM after them sees the whole past.
    The layers are in the order by which checkpoints name them.
    """

    def __init__(self, c: EncodecConfig):
        width = c.filters
        layers: list[nn.Module] = [Conv(c, c.channels, width, c.kernel)]
        for ratio in reversed(c.ratios):
            layers += [Residual(c, width, c.dilation_growth**j) for j in range(c.residual_layers)]
            layers += [nn.ELU(), Conv(c, width, 2 * width, 2 * ratio, stride=ratio)]
            width *= 2
        super().__init__(*layers, LSTM(width, c.lstm_layers), nn.ELU(), Conv(c, width, c.hidden, c.last_kernel))


class SEANetDecoder(nn.Sequential):
    """Latents (B, Z, T) to audio (B, C, T * hop): the encoder's mirror image."""

    def __init__(self, c: EncodecConfig):
        width = c.filters * 2 ** len(c.ratios)
        layers: list[nn.Module] = [Conv(c, c.hidden, width, c.kernel), LSTM(width, c.lstm_layers)]
        for ratio in c.ratios:
            layers += [nn.ELU(), ConvTranspose(c, width, width // 2, stride=ratio)]
            width //= 2
            layers += [Residual(c, width, c.dilation_growth**j) for j in range(c.residual_layers)]
        super().__init__(*layers, nn.ELU(), Conv(c, width, c.channels, c.last_kernel))


class ResidualVectorQuantizer(nn.Module):
    """K codebooks, each coding what the ones before it left over. codebooks: (K, V, Z)."""

    codebooks: Tensor

    def __init__(self, codebooks: int, size: int, width: int):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(codebooks, size, width))

    def encode(self, latents: Tensor, codebooks: int) -> Tensor:
        """Latents (B, Z, T) to codes (B, codebooks, T): the codeword nearest to the rest, book after book."""
        rest = rearrange(latents, "b z t -> (b t) z")
        codes = []
        for book in self.codebooks[:codebooks]:
            # |x - e|^2 written out, in transformers' order: rounding decides near-ties, which bf16 makes common.
            distance = rest.pow(2).sum(1, keepdim=True) - 2 * rest @ book.t() + book.t().pow(2).sum(0, keepdim=True)
            nearest = (-distance).max(dim=-1).indices
            rest = rest - F.embedding(nearest, book)
            codes.append(nearest)
        return rearrange(torch.stack(codes), "k (b t) -> b k t", b=latents.shape[0])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T), of the first codebooks or of all, to latents (B, Z, T): the sum of their codewords."""
        words = F.embedding(codes[:, 0], self.codebooks[0])
        for k in range(1, codes.shape[1]):
            words = words + F.embedding(codes[:, k], self.codebooks[k])
        return rearrange(words, "b t z -> b z t")


class Chunk(NamedTuple):
    """A piece of coded audio: codes (B, K, T), and its loudness (B, 1) where the codec normalises."""

    codes: Tensor
    scale: Tensor | None = None


class Encodec(nn.Module):
    """The codec: encode() to a list of chunks (one, unless long audio is coded in pieces), decode() back."""

    def __init__(self, config: EncodecConfig):
        super().__init__()
        checks.instance("config", config, EncodecConfig)
        self.config = config
        self.encoder: nn.Module = SEANetEncoder(config)
        self.quantizer = ResidualVectorQuantizer(config.codebooks, config.codebook_size, config.hidden)
        self.decoder: nn.Module = SEANetDecoder(config)

    def encode(self, audio: Tensor, codebooks: int | None = None) -> list[Chunk]:
        """Code audio (B, C, N), nominally in [-1, 1], with `codebooks` codebooks (default: those of the lowest
        bandwidth).

        Each chunk has ceil(n / hop) frames for its n samples. Padding must be zeros, which are coded as silence. Raises
        ValueError for a wrong shape, no samples, values that are not finite, or an impossible number of codebooks.
        """
        c = self.config
        checks.codec_input(c, audio, self.quantizer.codebooks.dtype, codebooks)
        codebooks = c.codebooks_for(c.bandwidths[0]) if codebooks is None else codebooks
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
        checks.chunks(c, chunks)
        pieces = [self._decode_chunk(chunk) for chunk in chunks]
        return pieces[0] if c.chunk_seconds is None else overlap_add(pieces, c.chunk_stride)

    def _decode_chunk(self, chunk: Chunk) -> Tensor:
        audio: Tensor = self.decoder(self.quantizer.decode(chunk.codes))
        return audio if chunk.scale is None else audio * chunk.scale.view(-1, 1, 1)


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
