"""What several test files share."""

from pathlib import Path

import pytest


def _find_datasets() -> Path | None:
    for folder in Path(__file__).resolve().parents:
        found = folder / "shared" / "datasets"
        if found.is_dir():
            return found
    return None


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of real data sets, as .tar."""
    found = _find_datasets()
    if found is None:
        pytest.skip("no shared/datasets beside the checkout: the real data sets can't be used")
    return found
