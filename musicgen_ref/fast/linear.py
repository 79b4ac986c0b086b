"""Linear layers in the order of operands that is fastest for the few rows of a decoding step.

A step of decoding multiplies a row or a few by every weight, so its time is that of reading the weights, and on CPUs
BLAS reads them at very different speeds depending on how the product is written. Measured on two cores of an AMD EPYC
whose MKL stays with AVX2 kernels: two rows x of a weight W that is not wide, x W' reads 8 GB/s and (W x')' 30; one row
16 to 20, in blocks of outputs 24 to 30; 4 to 12 rows 8 to 12, in blocks 12 to 17. On an Intel Xeon, where MKL has
kernels of AVX-512, (W x')' helps from six rows on and nothing else does. `python -m benchmarks` shows the sum of it:
the plain model beside the fast one.

Sums are taken in another order: results differ by 1e-6 of their scale.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Attention
from ..decoder import Block, Decoder

PROCESSOR = getattr(torch.cpu, "get_capabilities", dict[str, str])().get("cpu_name", "Intel")  # old torch cannot tell
MKL_AVX512 = "Intel" in PROCESSOR and torch.backends.cpu.get_cpu_capability() == "AVX512"
LARGE = 2**18  # elements; smaller weights stay in a core's cache, however they are read
FEW = 64  # rows; with more of them BLAS is bound by arithmetic
BLOCKS = 16  # of outputs, each a product of its own
# Where they are, beside the decoder's heads. T5's feed-forward stays as it is: it runs once a text, over more rows.
PLACES: dict[type[nn.Module], tuple[str, ...]] = {
    Attention: ("q", "k", "v", "out"),
    Block: ("fc1", "fc2"),
}


class FewRows(nn.Linear):
    """nn.Linear without a bias that takes over the weight of another one."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)  # nn.Linear's own would draw a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", None)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        W, rows = self.weight, x.shape[:-1].numel()
        few = (6 if MKL_AVX512 else 1) <= rows <= FEW
        if not few or x.dtype != torch.float32 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        flat = x.reshape(rows, -1)
        if MKL_AVX512 or (2 <= rows <= 3 and self.in_features <= self.out_features):
            out = (W @ flat.t()).t().contiguous()  # SDPA is slow on anything else
        else:
            out = rearrange(flat @ W.unflatten(0, (BLOCKS, -1)).mT, "blocks rows out -> rows (blocks out)")
        return out.view(*x.shape[:-1], -1)


def put_in(module: nn.Module) -> None:
    """Replace the large linear layers of the attentions and of the decoder that are inside a module."""
    inside = list(module.modules())
    places = [(parent, name) for parent in inside for name in PLACES.get(type(parent), ())]
    heads = [part.heads for part in inside if isinstance(part, Decoder)]
    places += [(each, name) for each in heads for name, _ in each.named_children()]
    for parent, name in places:
        layer = getattr(parent, name)
        if type(layer) is nn.Linear and layer.weight.numel() >= LARGE and layer.out_features % BLOCKS == 0:
            setattr(parent, name, FewRows(layer))
