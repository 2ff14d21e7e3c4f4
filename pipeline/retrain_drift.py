"""Drift as a reason to retrain: what the champion was given lately against the training data, if the recipe says so."""

import logging
from pathlib import Path

from pipeline.params import load_section, read_sections
from pipeline.placement import Placement
from pipeline.retrain_failure import to_sentence
from pipeline.retrain_standing import Standing
from unet_core.errors import RecipeError, UnetError
from unet_core.index import INDEX_NAME

log = logging.getLogger(__name__)


def find_drift(standing: Standing, shards: Path, placement: Placement, *, may_store: bool) -> str | None:
    """How recent inputs differ, as a sentence; None where they don't, nobody can tell, or the recipe has no `drift`.

    The shards may not be here yet, or be of another kind than the champion's, or the log may not be readable: that is
    told, and keeps nobody from training.
    """
    champion = standing.champion
    if "drift" not in read_sections() or champion is None or not (shards / INDEX_NAME).exists():
        return None
    # They take most of a second.
    from pipeline.drift_look import DriftQuestion, look_for_drift
    from pipeline.drift_statistics import DriftConfig

    ask = DriftQuestion(
        model=f"models:/{champion.name}/{champion.number}",
        model_sha256=champion.model_sha256,
        shards=shards,
        config=load_section("drift", DriftConfig),
        may_store=may_store,
    )
    try:
        found = look_for_drift(ask, placement)
    except RecipeError:
        raise
    except (UnetError, OSError) as error:
        log.warning("no look at drift: %s", to_sentence(error))
        return None
    return found.sentence if found.comparison.decision == "drift" else None
