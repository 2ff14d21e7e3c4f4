"""What needs a registry is in test_tracking.py."""

from pathlib import Path

import pytest

from pipeline.receipt import Receipt, read_receipt
from unet_core.errors import RegistryError


def test_a_receipt_names_model_and_weights(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"model": "unet", "weights_sha256": "abc"}', encoding="utf-8")
    assert read_receipt(tmp_path / "r.json") == Receipt(model="unet", weights_sha256="abc")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7", '{"model": "unet"}', '{"more": 1}'])
def test_what_is_no_receipt_says_that_nothing_is_registered(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RegistryError) as caught:
        read_receipt(path)
    assert str(caught.value) == f"nothing is registered: {path} can't be read. Run `dvc repro` first."
