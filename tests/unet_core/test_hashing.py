from pathlib import Path

import pytest

from unet_core.hashing import hash_file

# From FIPS 180-4's examples.
KNOWN = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
}


@pytest.mark.parametrize("content", KNOWN, ids=["empty", "abc", "a million bytes"])
def test_hash_is_the_sha256_of_the_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert hash_file(path) == KNOWN[content]
