import os

# One thread for each of the two workers and for what they start, set before PyTorch reads
# it: two that spin on the same cores take ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

# A first call may load half of PyTorch: time is not what these tests are about.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Start with the slowest, and keep on one worker what shares a slow fixture."""
    for item in items:
        pictures = "pictures" in item.name
        if pictures or "whole" in item.fixturenames:
            item.add_marker(
                pytest.mark.xdist_group("pictures" if pictures else "points")
            )
            item.add_marker(pytest.mark.slow)
    marks = ("slowest", "slow")
    items.sort(key=lambda item: [item.get_closest_marker(m) is None for m in marks])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
