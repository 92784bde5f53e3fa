"""Fixtures of the contract tests."""

import pytest
import torch

from multicrop.contracts.problems import tiny_encoder
from multicrop.encoder import Encoder


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of the same numbers for each test."""
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The embedded encoder."""
    return tiny_encoder()
