from pathlib import Path

import pytest

from mal.export import plan_cache


@pytest.fixture(autouse=True)
def no_kept_plans(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines are built, not found."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(plan_cache, "cache_folder", lambda: folder)
    return folder
