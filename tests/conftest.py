import pytest
import torch
from hypothesis import settings

# A first call may load half of PyTorch: time is not what these tests are about.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
