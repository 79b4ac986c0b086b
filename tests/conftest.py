"""One thread: the models are tiny, and a sum then has one order on every machine.

Hypothesis draws the same examples in every run (tests/fuzz_generate.py draws new ones), and sets no deadline.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
