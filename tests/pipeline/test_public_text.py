"""Addresses as people have them: with passwords, keys and signatures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.public_text import holds_secret, public, public_address

#: An address, and what of it others may read.
SECRETS = {
    "postgresql://mlflow:secret@db/mlflow": "postgresql://***@db/mlflow",
    "postgresql+psycopg://mlflow:se/cret@db:5432/m": "postgresql+psycopg://***@db:5432/m",
    "s3://AKIA:wJalr/XUt/EXAMPLE@bucket/shards": "s3://***@bucket/shards",
    "s3://AKIA:4/XUt@bucket/shards": "s3://***@bucket/shards",
    "postgresql://mlflow:7/Kx9@db/m": "postgresql://***@db/m",
    "https://user:p@ss@host/x": "https://***@host/x",
    "https://user:@host/x": "https://***@host/x",
    "https://token@host/x": "https://***@host/x",
    "https://host/image.png?X-Amz-Signature=1": "https://host/image.png",
    "https://host:8080/image.png?sig=1": "https://host:8080/image.png",
    "https://host/callback#access_token=1": "https://host/callback",
    "postgresql://db/m?sslpassword=1": "postgresql://db/m",
}
PLAIN = (
    "s3://bucket/by@somebody/a:b#1.png",
    "s3://bucket/scan#monkey_01.tif",
    "http://[::1]:5000/by@somebody",
    "http://127.0.0.1:5000/by@somebody",
    "ssh://host/srv/dvc",
    "sqlite:////srv/unet/mlflow.db",
    "models:/unet@champion",
    "/srv/a@b:c/d",
    "what? nothing",
)


@pytest.mark.parametrize(("address", "shown"), SECRETS.items())
def test_a_secret_is_not_shown_and_is_known_as_one(address: str, shown: str) -> None:
    assert public(address) == shown
    assert public(f"can't reach '{address}': no route") == f"can't reach '{shown}': no route"
    assert holds_secret(address)


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert public(text) == text
    assert not holds_secret(text)


def test_the_name_of_a_user_is_no_secret_where_it_only_says_whom_to_let_in() -> None:
    assert not holds_secret("ssh://git@host/srv/dvc")
    assert not holds_secret("webdavs://user@host/dvc")
    assert holds_secret("ssh://git:secret@host/srv/dvc")
    assert public("ssh://git@host/srv/dvc") == "ssh://***@host/srv/dvc"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'?#"), min_size=1))
def test_no_password_is_shown_whatever_its_characters(secret: str) -> None:
    assert public(f"at postgresql://user:{secret}@db/m.") == "at postgresql://***@db/m."
    # Where hosts have ports, digits and a slash look like one; of a whole address, nothing before the last @ is shown.
    assert public(f"at https://user:x{secret}@host/m.") == "at https://***@host/m."
    assert public_address(f"https://user:{secret}@host/m") == "https://***@host/m"
