"""Fixtures for every test, and the gates: what is missing skips with its reason, or fails where it was promised."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from mal.runtime.machine import gpu_count

# A shell that starts the suite in the background lets it ignore Ctrl-C, and every process it starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not gpu_count():
        if os.environ.get("MAL_REQUIRE_GPU") == "1":
            pytest.fail("MAL_REQUIRE_GPU=1 promises a GPU, and the driver sees none", pytrace=False)
        pytest.skip("needs a CUDA GPU")


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
