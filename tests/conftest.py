"""Fixtures that every test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of measured data beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no measured data beside the repository ({SHARED.name}/)")
    return SHARED
