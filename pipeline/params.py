"""params.yaml section -> dataclass, strictly: the door to YAML.

One section is one dataclass beside the code that it configures, and one `params:` line of its stage.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from unet_core.errors import RecipeError
from unet_core.typed import check_types

#: Where the recipe lies, relative to the working tree.
RECIPE = Path("params.yaml")

SECTIONS = (
    "ingest images masks validate split shard model augment train register evaluate promote".split()  # noqa: SIM905
)
#: Of commands that a recipe may do without.
OPTIONAL = ("search", "drift")

Config = TypeVar("Config")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as in YAML 1.2, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_section(name: str, cls: type[Config], path: Path = RECIPE) -> Config:
    """Read one section of the recipe as `cls`; RecipeError for an unknown, missing or ill-typed key."""
    recipe = _read(path)
    _check_keys(recipe, (*SECTIONS, *OPTIONAL), str(path), whole=False)
    if name not in recipe:
        raise RecipeError(f"missing section: {path}: {name}. Copy it from a recipe in recipes/.")
    return _build(cls, recipe[name], f"{path}: {name}")


def read_sections(path: Path = RECIPE) -> dict[str, Any]:
    """The whole recipe as it is written, section by section; RecipeError where it is none."""
    return _read(path)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level: {"train": {"epochs": 3}} -> {"train.epochs": 3}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def change_recipe(text: str, changes: Mapping[str, Any]) -> str:
    """The text of a recipe with other values ("train.epochs": 3), its comments and order kept.

    RecipeError for a value that does not stand in one line, or whose section there is none.
    """
    changed, expected = text, yaml.load(text, Loader=_Loader)  # noqa: S506
    for name, value in changes.items():
        section, _, key = name.partition(".")
        changed = _change_line(changed, section, key, json.dumps(value, ensure_ascii=False))
        expected[section][key] = value
    try:
        found = yaml.load(changed, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        found = None
    if found != expected:
        raise RecipeError(f"can't be changed: {RECIPE}: {', '.join(changes)}. Write each of them in one line.")
    return changed


def keep_stages(lock: str, names: Collection[str]) -> str:
    """Text of a dvc.lock -> that of some of its stages alone."""
    body = yaml.safe_load(lock)
    stages = {name: stage for name, stage in body["stages"].items() if name in names}
    return yaml.safe_dump({**body, "stages": stages}, sort_keys=False)


def locked_stage(lock: str, name: str) -> dict[str, Any]:
    """What a dvc.lock says of a stage: `deps` and `params`; empty where it does not know the stage."""
    stage: dict[str, Any] = (yaml.safe_load(lock).get("stages") or {}).get(name, {})
    return stage


def _change_line(text: str, section: str, key: str, value: str) -> str:
    """Replace what stands behind `key` up to a comment, or add the key at the section's beginning."""
    head = re.search(rf"^{re.escape(section)}:[ \t]*(#.*)?\n", text, re.MULTILINE)
    if head is None:
        if re.search(rf"^{re.escape(section)}:", text, re.MULTILINE):
            raise RecipeError(
                f"can't be changed: {RECIPE}: {section}: the section stands in one line. "
                "Give each key a line of its own."
            )
        raise RecipeError(f"missing section: {RECIPE}: {section}. Copy it from a recipe in recipes/.")
    next_section = re.compile(r"^[^\s#]", re.MULTILINE).search(text, head.end())
    end = next_section.start() if next_section else len(text)
    line = re.compile(rf"^(?P<indent>[ \t]+){re.escape(key)}:.*?(?P<comment>[ \t]+#.*)?$", re.MULTILINE)
    found = line.search(text, head.end(), end)
    if found is None:
        return f"{text[: head.end()]}  {key}: {value}\n{text[head.end() :]}"
    return f"{text[: found.start()]}{found['indent']}{key}: {value}{found['comment'] or ''}{text[found.end() :]}"


def _read(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  it derives from SafeLoader
    except FileNotFoundError as error:
        raise RecipeError(
            f"no recipe: {path.resolve()}. Run `unet init --source FOLDER`, or copy one from recipes/."
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8: {path}: {error}. Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {path}: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"not a recipe: {path}: expected sections, got {type(recipe).__name__}.")
    return recipe


def _check_keys(
    found: Iterable[str], known: Sequence[str], where: str, *, whole: bool, optional: Sequence[str] = ()
) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
            raise RecipeError(f"unknown key: {where}: {key}. {hint}")
    missing = [key for key in known if key not in set(found) and key not in optional]
    if whole and missing:
        raise RecipeError(f"missing key: {where}: {missing[0]}. Add it; recipes/ shows examples.")


def _build(cls: type[Config], body: Any, where: str) -> Config:
    if not isinstance(body, dict):
        raise RecipeError(f"wrong type: {where}: expected keys and values, got {body!r}.")
    presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "presets", {})
    body = _with_preset(presets, body, where)
    complete = getattr(cls, "complete", None)
    if complete is not None:
        body = complete(body)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    optional = [
        name
        for name, field in fields.items()
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    ]
    own = ["preset"] if presets else []
    _check_keys(body, [*own, *fields], where, whole=True, optional=[*own, *optional])
    check_types(cls, body, where)
    return cls(**body)


def _with_preset(presets: Mapping[str, Mapping[str, Any]], body: dict[str, Any], where: str) -> dict[str, Any]:
    """The keys of the preset that a section names, and its own, which go before."""
    if not presets or "preset" not in body:
        return body
    name = body["preset"]
    if name not in presets:
        near = difflib.get_close_matches(str(name), presets, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known presets: {', '.join(presets)}."
        raise RecipeError(f"unknown preset: {where}: {name}. {hint}")
    return {**presets[name], **{key: value for key, value in body.items() if key != "preset"}}
