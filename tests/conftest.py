"""What the tests share: the folder of shared data, and few threads."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden outputs: $VOS_SHARED, by default ../shared beside the checkout."""
    folder = Path(os.environ.get("VOS_SHARED", REPOSITORY.parent / "shared"))
    folder = folder if folder.is_absolute() else REPOSITORY / folder
    if not (folder / "golden").is_dir():
        pytest.skip(f"shared data not found at {folder}: set VOS_SHARED")
    return folder
