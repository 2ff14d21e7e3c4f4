"""Patterns such as `images/{group}/{key}.*` -> which files are images, which masks, and which belong together."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.source import PICTURE_SUFFIXES, IngestConfig, Pair, and_more
from pipeline.storage import join
from unet_core.errors import DataError, RecipeError
from unet_core.samples import ClassMap

#: No part of a path that a pattern takes by *, ** or a field begins with a dot: those are hidden.
SHOWN = r"(?!\.)"
PART = re.compile(r"\{([A-Za-z_]\w*)\}|(\*)|([^*{}]+)")


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A path below the source with fields."""

    text: str
    fields: tuple[str, ...]
    expression: re.Pattern[str]

    @property
    def num_literal(self) -> int:
        """How many characters a path must have just so: of two patterns, the one with more says more."""
        return sum(len(found.group(3) or "") for found in PART.finditer(self.text))

    def match(self, name: str) -> dict[str, str] | None:
        """The fields' values in a path, or None. Equal letters are equal however a file system writes them (NFC)."""
        found = self.expression.fullmatch(name)
        if found is None:
            return None
        return {field: unicodedata.normalize("NFC", value) for field, value in found.groupdict().items()}

    def fill(self, values: Mapping[str, str]) -> str:
        """The pattern with its fields' values, for a person to read."""
        return PART.sub(lambda part: values.get(part.group(1) or "", part.group()), self.text)


def compile_pattern(text: str, where: str, classes: Sequence[str] = ()) -> Pattern:
    """Read a pattern; RecipeError for one that can't work. `classes` are what the field {class} may be.

    A field, and *, take a part of one folder's or file's name, as little as they can; ** takes any folders.
    """
    components = text.split("/")
    if "" in components or ".." in components:
        raise RecipeError(f"{where}: {text!r}: write a path below the source, such as images/{{key}}.*")
    fields: list[str] = []
    expression = ""
    for number, component in enumerate(components):
        is_last = number == len(components) - 1
        if component == "**":
            expression += rf"(?:{SHOWN}[^/]+/)*" + (rf"{SHOWN}[^/]+" if is_last else "")
            continue
        if "**" in component:
            raise RecipeError(f"{where}: {text!r}: ** stands for whole folders. Write it between slashes.")
        any_picture = is_last and component.endswith(".*")
        body = component.removesuffix(".*") if any_picture else component
        expression += ("" if body.startswith(".") else SHOWN) + _part(body, text, where, fields, classes)
        expression += "" if not any_picture else r"\.(?i:" + "|".join(s[1:] for s in sorted(PICTURE_SUFFIXES)) + ")"
        expression += "" if is_last else "/"
    if "key" not in fields:
        raise RecipeError(f"{where}: {text!r}: no {{key}}, which names the sample. Such as images/{{key}}.*")
    return Pattern(text=text, fields=tuple(fields), expression=re.compile(expression))


def _part(component: str, text: str, where: str, fields: list[str], classes: Sequence[str]) -> str:
    """One folder's or file's name as a regular expression; fields met for the first time are added to `fields`."""
    expression, end = "", 0
    for found in PART.finditer(component):
        if found.start() != end:
            break
        end = found.end()
        field, star, literal = found.groups()
        if literal is not None:
            expression += re.escape(literal)
        elif star is not None:
            expression += "[^/]*?"
        elif field in fields:
            expression += f"(?P={field})"
        else:
            if field == "class" and not classes:
                raise RecipeError(f"{where}: {text!r}: {{class}} is for masks of kind multilabel. Use another field.")
            among = "|".join(re.escape(name) for name in classes)
            expression += f"(?P<class>{among})" if field == "class" else f"(?P<{field}>[^/]+?)"
            fields.append(field)
    if end != len(component):
        raise RecipeError(f"{where}: {text!r}: a brace that is no {{field}}. A field is a word in braces.")
    return expression


def find_by_pattern(source: str, names: Iterable[str], config: IngestConfig, class_map: ClassMap) -> list[Pair]:
    """The pairs among files below the source; DataError for an image or a mask alone and for two of one key."""
    images_by, masks_by = recipe_patterns(config, class_map)
    images: dict[str, dict[str, str]] = {}
    masks: dict[str, dict[str, str]] = {}
    for name in names:
        as_image, as_mask = images_by.match(name), masks_by.match(name)
        if as_image is not None and as_mask is not None:
            # **/{key}.png takes a_mask.png too, and {key}_mask.png says more.
            as_image = as_image if images_by.num_literal > masks_by.num_literal else None
        if as_image is not None:
            images[name] = as_image
        elif as_mask is not None:
            masks[name] = as_mask
    if not images:
        raise DataError(
            f"no images: {join(source, images_by.text)}: no file there is a picture of such a name "
            f"({', '.join(sorted(PICTURE_SUFFIXES))}). Put images there, or correct ingest.image_pattern."
        )
    keys = _name_samples(source, images, config)
    shared = [field for field in masks_by.fields if field != "class"]
    found = _gather(source, images, masks, shared)
    _refuse_alone(source, images, found, masks_by, class_map)
    return [
        Pair(
            key=key,
            image=name,
            masks=tuple(mask for _, mask in _in_order(found[name], class_map)),
            group=images[name].get("group"),
            split=images[name].get("split"),
            slices={field: v for field, v in images[name].items() if field not in ("key", "group", "split")},
        )
        for key, name in sorted(keys.items())
    ]


def recipe_patterns(config: IngestConfig, class_map: ClassMap) -> tuple[Pattern, Pattern]:
    """The patterns of images and masks; RecipeError where they don't fit together."""
    is_multilabel = class_map.kind == "multilabel"
    default = "masks/{class}/{key}.*" if is_multilabel else "masks/{key}.*"
    images = compile_pattern(config.image_pattern, "ingest.image_pattern")
    masks = compile_pattern(
        config.mask_pattern or default, "ingest.mask_pattern", class_map.names if is_multilabel else ()
    )
    if is_multilabel and "class" not in masks.fields:
        raise RecipeError(f"ingest.mask_pattern: {masks.text!r}: no {{class}}. Masks of kind multilabel need it.")
    unknown = sorted(set(masks.fields) - set(images.fields) - {"class"})
    if unknown:
        raise RecipeError(
            f"ingest.mask_pattern: {masks.text!r}: {{{unknown[0]}}} is not in image_pattern. "
            "Write * where a mask's name has something of its own."
        )
    if images.text == masks.text:
        raise RecipeError(f"ingest.mask_pattern: {masks.text!r}: images have the same. Tell masks from images.")
    unknown = sorted({name or "{}" for name in re.findall(r"\{(.*?)\}", config.key)} - set(images.fields))
    if unknown or "{key}" not in config.key or "/" in config.key:
        raise RecipeError(
            f"ingest.key: {config.key!r}: made of fields of image_pattern, {{key}} among them, "
            f"without slashes. It has {list(images.fields)}."
        )
    return images, masks


def _name_samples(source: str, images: Mapping[str, Mapping[str, str]], config: IngestConfig) -> dict[str, str]:
    """Key -> image. The key follows from the path alone: another image that comes later never renames this one."""
    keys: dict[str, str] = {}
    for name, values in images.items():
        key = PART.sub(lambda part, values=values: values.get(part.group(1) or "", part.group()), config.key)  # type: ignore[misc]
        if key in keys:
            fields = "_".join(f"{{{field}}}" for field in values)
            hint = f', or tell them apart with ingest.key: "{fields}"' if len(values) > 1 else ""
            raise DataError(
                f"two images for one sample: {key}: {join(source, keys[key])} and {name}. Keep one of them{hint}."
            )
        keys[key] = name
    return keys


def _gather(
    source: str, images: Mapping[str, Mapping[str, str]], masks: Mapping[str, Mapping[str, str]], shared: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Image -> its masks as (class or "", name)."""
    partner: dict[tuple[str, ...], str] = {}
    for name, values in images.items():
        other = partner.setdefault(tuple(values[field] for field in shared), name)
        if other != name:
            raise DataError(
                f"one mask for two images: {join(source, other)} and {name}: ingest.mask_pattern has only "
                f"{', '.join(f'{{{field}}}' for field in shared)}. Write the other fields into it, or keep one image."
            )
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in images}
    alone = []
    for mask, values in masks.items():
        image = partner.get(tuple(values[field] for field in shared))
        if image is None:
            alone.append(mask)
        else:
            found[image].append((values.get("class", ""), mask))
    if alone:
        raise DataError(
            f"mask without image: {join(source, alone[0])}{and_more(alone)}: no image goes with it. "
            "Add the image, or remove the mask."
        )
    return found


def _refuse_alone(
    source: str,
    images: Mapping[str, Mapping[str, str]],
    found: Mapping[str, Sequence[tuple[str, str]]],
    masks_by: Pattern,
    class_map: ClassMap,
) -> None:
    """DataError for an image without (all of) its masks, and for one with more than its kind of mask has."""
    for wanted in class_map.names if class_map.kind == "multilabel" else ("",):
        files = {image: [mask for name, mask in masks if name == wanted] for image, masks in found.items()}
        alone = [image for image in images if not files[image]]
        if alone:
            missing = masks_by.fill({**images[alone[0]], "class": wanted})
            raise DataError(
                f"image without mask: {join(source, alone[0])}{and_more(alone)}: there is no {missing}. "
                "Add the mask, or remove the image."
            )
        several = [image for image in images if len(files[image]) > 1]
        # A file per object is what masks of instances are.
        if several and str(class_map.kind) != "instances":
            one, other, *_ = files[several[0]]
            raise DataError(
                f"two masks for one image: {join(source, several[0])}: {one} and {other}. Keep one of them, "
                "or set masks.kind to instances if each file is an object."
            )


def _in_order(masks: Sequence[tuple[str, str]], class_map: ClassMap) -> list[tuple[str, str]]:
    """Masks in the order of the recipe's classes, then of their names."""
    order = {name: number for number, name in enumerate(class_map.names)}
    return sorted(masks, key=lambda mask: (order.get(mask[0], 0), mask[1]))
