"""What people read on a model's pages in MLflow: Markdown, and the image that shows what the model takes.

It changes no result. A version's text is made in sections, each by the stage that knows it; a section is put in the
place of its older self, and what people wrote beside it stays.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

import numpy as np

from unet_core.model_config import ModelSpec
from unet_core.samples import Array

#: Rows and names that are shown; MLflow takes 5,000 characters in all.
MAX_ROWS, MAX_CHARACTERS = 12, 5000
CUT = f"\n\n(Cut: MLflow takes {MAX_CHARACTERS} characters.)"
EXAMPLE_PX = 32
KINDS = {
    "multiclass": "Gives each pixel one of {} classes",
    "multilabel": "Gives a mask to each of {} classes, which may overlap",
    "instances": "Finds objects and tells each from its neighbours; {} classes",
}


def describe_model(name: str) -> str:
    """Text of the registered model: the same for all its versions."""
    return (
        f"U-Net for images. `models:/{name}@champion` is the version to use; `challenger` is the newest. "
        "What moved the champion, and why: `unet history`."
    )


def describe_version(spec: ModelSpec, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
    """What a version segments and how it was trained; `params` and `tags` are its run's."""
    config, names = spec.config, spec.class_map.names
    of = "gray" if spec.channels == 1 else "RGB" if spec.channels == 3 else f"{spec.channels}-channel"
    trained = [f"{params[key]} {what}" for key, what in (("epochs", "epochs"),) if key in params]
    trained += [
        f"{key.replace('_', ' ')} {params[key]}" for key in ("optimizer", "learning_rate", "seed") if key in params
    ]
    # Such as "2 workers from step 0; 1 worker from step 7".
    trained += [tags["train.workers"]] if "train.workers" in tags else []
    shape = f"of width {config.width}, depth {config.depth}, norm {config.norm}"
    if config.stem_stride > 1:
        shape += f", at 1/{config.stem_stride} of the resolution inside"
    if config.encoder is not None:
        begun = config.encoder_weights and f", begun with weights of sha256 {config.encoder_weights['sha256'][:12]}"
        shape = f"with encoder {config.encoder}{begun or ''}"
    commit = tags.get("git.commit", "")
    dirty = " with changes" if tags.get("git.dirty") == "true" else ""
    lines = [
        f"{KINDS[spec.class_map.kind].format(len(names))}: {_shorten(map(_escape, names))}.",
        f"Takes {of} images of {spec.images.bits} bits and any size.",
        f"U-Net {shape}, in {spec.precision}.",
        f"Trained with {', '.join(trained)}." if trained else "",
        f"Source: commit `{commit[:12]}`{dirty}." if commit else "",
    ]
    return "\n\n".join(line for line in lines if line)


def describe_use(spec: ModelSpec, address: str) -> str:
    """How a version is used, from a terminal and in Python."""
    dtype = f"uint{spec.images.bits}"
    masks = f"(N, H, W, {spec.class_map.num_classes})" if spec.class_map.kind == "multilabel" else "(N, H, W)"
    return (
        f"```\nunet predict FOLDER --model {address} --out masks\n```\n\n"
        f'```python\nmodel = mlflow.pyfunc.load_model("{address}")\n'
        f"masks = model.predict(images)  # (N, H, W, {spec.channels}) {dtype} -> {masks} uint8\n```"
    )


def describe_data(splits: Iterable[str | None]) -> str:
    """How many images the splits have."""
    counts = Counter(splits)
    return ", ".join(f"{counts[split]} {name}" for split, name in _SPLITS.items()) + " images."


_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def describe_scores(body: Mapping[str, Any], score: str, run_id: str | None) -> str:
    """The summary of `evaluate` as a table, with a picture of the worst and of median images."""
    of_classes, intervals = (body.get(f"class_{score}{end}", {}) for end in ("", "_interval_95"))
    rows = [_row(f"mean of {body['images']} images in {body['groups']} groups", body[score], body["interval_95"])]
    rows += [
        _row(_escape(name), of_classes[name], intervals[name]) for name in [*intervals][:MAX_ROWS] if name in of_classes
    ]
    left = len(intervals) - MAX_ROWS
    parts = ["\n".join([f"| | {score.replace('_', ' ')} | 95 % interval |", "|---|---|---|", *rows])]
    parts += [f"{left} more classes stand in evaluation/evaluate.json."] if left > 0 else []
    if run_id is not None:
        parts.append("The worst images, then median ones: image, true mask, predicted mask, errors.")
        parts.append(f"![cases](get-artifact?{urlencode({'path': 'evaluation/cases.png', 'run_uuid': run_id})})")
    return "\n\n".join(parts)


def with_section(text: str, title: str, body: str) -> str:
    """The text with this section: in the place of an older one, else at its end.

    A line that readers don't see ends it, so that what people write below stays; older texts have no such line, there
    it reaches to the next title. Where there is not room for all, the section is cut by whole lines and says so; where
    there is none, the text stays as it is.
    """
    head, end = f"### {title}\n\n", f"\n\n<!-- end of {title} -->"
    old = re.compile(
        rf"^### {re.escape(title)}\n.*?(?:^<!-- end of {re.escape(title)} -->$|(?=^### )|\Z)", re.DOTALL | re.MULTILINE
    )
    found = old.search(text)
    before, after = (text[: found.start()], text[found.end() :]) if found else (text, "")

    def put(words: str) -> str:
        parts = (before.rstrip(), head + words + end, after.strip())
        return "\n\n".join(part for part in parts if part)

    room = MAX_CHARACTERS - len(put(""))
    if len(body) <= room:
        return put(body)
    whole_lines = body[: max(0, room - len(CUT))].rpartition("\n")[0]
    return put(whole_lines + CUT) if whole_lines else text


def example_images(spec: ModelSpec) -> Array:
    """A small image such as the model takes, (1, H, W, C): a bright disc on dark ground."""
    rows, columns = np.mgrid[:EXAMPLE_PX, :EXAMPLE_PX] - EXAMPLE_PX / 2
    bright = np.where(np.hypot(rows, columns) < EXAMPLE_PX / 4, 0.8, 0.2) * spec.images.white
    image = np.repeat(bright[..., None], spec.channels, axis=-1)
    return image[None].astype(f"uint{spec.images.bits}")


def _row(name: str, value: float | None, interval: Iterable[float] | None) -> str:
    low_high = " to ".join(f"{bound:.3f}" for bound in interval) if interval is not None else "too few groups"
    return f"| {name} | {'undefined' if value is None else f'{value:.3f}'} | {low_high} |"


def _shorten(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - MAX_ROWS} more" if len(shown) > MAX_ROWS else ""
    return ", ".join(shown[:MAX_ROWS]) + more


def _escape(name: str) -> str:
    """A user's word in Markdown: no table cell, link or tag begins in it, and none is longer than a line."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", " ".join(name.split()))[:60]
