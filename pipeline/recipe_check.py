"""The whole recipe, read before a long run: DVC takes a stage's old results away before the stage can refuse a typo."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.drift_statistics import DriftConfig
from pipeline.gate import GateConfig
from pipeline.identity import say_other_pins
from pipeline.params import OPTIONAL, load_section, read_sections
from pipeline.source import IngestConfig
from pipeline.space import SearchConfig
from pipeline.stages.evaluate import EvaluateConfig
from pipeline.stages.register import RegisterConfig
from pipeline.stages.shard import ShardConfig
from pipeline.stages.validate import ValidateConfig
from unet_core.errors import TrainingError, UnetError
from unet_core.model_config import ModelConfig
from unet_core.samples import ClassMap, ImageConfig
from unet_core.splits import SplitConfig
from unet_core.train_config import TrainConfig
from unet_core.transforms import AugmentConfig

CLASSES: Mapping[str, type] = {
    "ingest": IngestConfig,
    "images": ImageConfig,
    "masks": ClassMap,
    "validate": ValidateConfig,
    "split": SplitConfig,
    "shard": ShardConfig,
    "model": ModelConfig,
    "augment": AugmentConfig,
    "train": TrainConfig,
    "register": RegisterConfig,
    "evaluate": EvaluateConfig,
    "promote": GateConfig,
    "search": SearchConfig,
    "drift": DriftConfig,
}


def check_recipe() -> None:
    """The error of the first section that can't be read. What depends on the data, only the stages can tell."""
    written = read_sections()
    for name, cls in CLASSES.items():
        if name in written or name not in OPTIONAL:
            load_section(name, cls)


def find_refusal(root: Path) -> UnetError | None:
    """Why no stage should begin, as long as nobody has mended that."""
    try:
        check_recipe()
    except UnetError as error:
        return error
    if other := say_other_pins(root):
        # It would be recorded as a training of versions that are not installed.
        return TrainingError(f"{other}. Run `make install` (on a cluster, build the image anew), or correct the pin.")
    return None
