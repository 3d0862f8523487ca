"""Fixtures for every test, and the gates: what is missing skips with its reason, or fails where it was promised."""

import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the evaluation data; absent for a newcomer, promised in CI."""
    if not (SHARED / "data").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("CI=true promises ../shared, and it is not there")
        pytest.skip("needs ../shared/data (evaluation data that is not part of the repository)")
    return SHARED
