"""The default recipe on shapes, judged as the tutorial judges: 0.5 BCE + 0.5 soft Dice on fresh images.

Compares with the best validation losses that the tutorial prints for its two networks, 0.258 and 0.276 (100 training
images, 60 epochs, width 64). `python -m benchmarks.tutorial [--quick]` prints one JSON line last.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.workspace import make_workspace, print_result, run
from pipeline.summary import read_timings
from unet_core.checkpoint import read_model
from unet_core.inference import predict_logits
from unet_core.losses import binary_cross_entropy, soft_dice
from unet_core.synthetic import draw_shapes

#: Seed of the fresh images; training images have seed 0.
FRESH_SEED = 2_000_003
TUTORIAL_LOSSES = (0.258, 0.276)


def main() -> None:
    """Train twice: on the default recipe's images and on 100, as many as the tutorial has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two epochs and 50 fresh images: shows that it runs")
    arguments = parser.parse_args()
    num_fresh = 50 if arguments.quick else 500
    default = train_and_judge(400, {"train.epochs": 2} if arguments.quick else {}, num_fresh)
    print(f"default recipe: {default}", flush=True)
    # As many steps as the default recipe takes, on the tutorial's 100 images (and its 20 for validation).
    fair = {
        "ingest.table": "splits.txt",
        "ingest.table_columns": ["split", "key"],
        "ingest.split_column": "split",
        "split.declared": {"train": "train", "val": "val", "test": "test"},
        "train.epochs": 2 if arguments.quick else 36,
        "train.validate_every_epochs": 6,
    }
    hundred = train_and_judge(140, fair, num_fresh)
    print_result(
        {
            **default,
            "with_100_training_images": hundred,
            "compared_with": {"tutorial_best_val_loss": list(TUTORIAL_LOSSES)},
        }
    )


def train_and_judge(count: int, changes: dict[str, Any], num_fresh: int) -> dict[str, float]:
    """Run the road up to `train` in a working tree of its own and score the model on fresh images."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_workspace(Path(scratch) / "road", "shapes", changes)
        run(folder, "unet", "shapes", "data/raw/shapes", "--count", str(count))
        if "ingest.table" in changes:
            words = ["train"] * 100 + ["val"] * 20 + ["test"] * 20
            lines = [f"{word} {number:05d}\n" for number, word in enumerate(words)]
            (folder / "data/raw/shapes/splits.txt").write_text("".join(lines), encoding="utf-8")
        run(folder, "unet", "add")
        run(folder, "dvc", "repro", "train")
        seconds = read_timings(folder / ".unet" / "timings.jsonl")["training"]
        losses = judge(folder / "models" / "final", num_fresh)
        num_steps = sum(1 for _ in (folder / "plots" / "curves.csv").open()) - 1
    return {
        "val_loss": round(float(losses.mean(axis=0) @ [0.5, 0.5]), 4),
        "val_loss_first_20": round(float(losses[:20].mean(axis=0) @ [0.5, 0.5]), 4),
        "val_dice_loss": round(float(losses[:, 1].mean()), 4),
        "minutes": round(seconds / 60, 2),
        "train_images_per_second": round(num_steps * 4 / seconds, 1),
    }


def judge(model_dir: Path, num_fresh: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """BCE and soft Dice loss of each fresh image, (images, 2); every image counts alike."""
    model, spec = read_model(model_dir)
    rows = []
    for number in range(num_fresh):
        image, masks = draw_shapes(seed=FRESH_SEED, number=number)
        logits = predict_logits(model, spec, image[..., None])[None]
        target = torch.from_numpy(masks).permute(2, 0, 1)[None]
        rows.append([float(binary_cross_entropy(logits, target)), float(soft_dice(logits, target))])
    return np.array(rows)


if __name__ == "__main__":
    main()
