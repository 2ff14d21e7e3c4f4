"""Do plain values, as YAML and JSON give them, have the types of a dataclass?"""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from unet_core.errors import RecipeError


def check_types(cls: type, body: Mapping[str, Any], where: str) -> None:
    """RecipeError for the first value that is not of the type which its field of the dataclass `cls` is said to have.

    Whether all fields are there, and no others, is for the dataclass to say.
    """
    hints = typing.get_type_hints(cls)
    for name, value in body.items():
        if name in hints and not _fits(value, hints[name]):
            raise RecipeError(f"wrong type: {where}.{name}: expected {_describe(hints[name])}, got {value!r}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(argument) for argument in arguments)
    if hint is type(None):
        return "null"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{_describe(arguments[0])}: {_describe(arguments[1])} pairs"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_describe(arguments[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Any: "a value"}
    return names.get(hint, str(hint))
