from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from unet_core.errors import RecipeError
from unet_core.typed import check_types


@dataclass
class Example:
    count: int
    share: float
    kind: Literal["a", "b", 8]
    maybe: Sequence[float] | None
    names: Mapping[str, int]
    sure: bool
    pair: tuple[float, ...]


RIGHT: dict[str, Any] = {
    "count": 1, "share": 1, "kind": 8, "maybe": None, "names": {"x": 1}, "sure": True, "pair": [0.5, 1],
}  # fmt: skip


def test_values_of_the_right_types_pass_and_what_is_no_field_is_not_looked_at() -> None:
    check_types(Example, {**RIGHT, "other": object()}, "there")
    check_types(Example, {"maybe": [1, 2.5]}, "there")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", True, "a whole number"),
        ("count", 1.0, "a whole number"),
        ("share", "1", "a number"),
        ("share", False, "a number"),
        ("kind", None, "one of a, b, 8"),
        ("kind", 8.0, "one of a, b, 8"),
        ("maybe", [1, None], "a list of a number or null"),
        ("names", {"x": "1"}, "a text: a whole number pairs"),
        ("names", ["x"], "a text: a whole number pairs"),
        ("sure", 1, "true or false"),
        ("pair", "0.5", "a list of a number"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_types(Example, {**RIGHT, name: value}, "there")
    assert str(caught.value) == f"wrong type: there.{name}: expected {expected}, got {value!r}."
