"""One thread: the models are tiny, and a sum then has one order on every machine.

Hypothesis draws the same examples in every run (tests/fuzz_generate.py draws new ones), and sets no deadline. What a
test draws from torch's global generator does not depend on the tests that ran before it in the same process.
"""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
