"""This MusicGen against another one, stage by stage.

    inputs   one fixed input: captions, ids, codes, audio, a seed
    stages   what an implementation makes of it, in the order in which a clip is made: a name and a tensor each
    compare  two implementations, or two recordings, or one of each: where do they begin to differ, and by how much?

Two implementations of one model differ by rounding alone; a mistake in one of them shows first in the stage in which it
was made. So every stage but the last reads the same fixed input rather than what the stage before it made, wherever
that is possible: the first stage that differs is the place to look.

An implementation is a mapping from the names of stages to tensors, or to functions of Inputs that return them, so a
third one takes part with as many stages as it has:

    recording = record("demo")
    report = compare(recording, {"memory": my_memory, "decoder.logits": my_logits}, inputs=recording.inputs)
    print(report)

Legend: B rows of text, L text tokens, E model width, K codebooks, S delayed steps, T frames, V codes per codebook,
Z width of a latent, C channels, N samples.
"""

from .compare import Report, Row, Stages, compare
from .inputs import Inputs
from .recording import Recording, record, record_audiocraft, record_transformers

__all__ = [
    "Inputs",
    "Recording",
    "Report",
    "Row",
    "Stages",
    "compare",
    "record",
    "record_audiocraft",
    "record_transformers",
]
