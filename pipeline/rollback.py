"""`unet rollback` and `unet history`: the champion before, and all that there were."""

from collections.abc import Sequence

from pipeline import history, tracking
from pipeline.announce import announce
from pipeline.command import say
from pipeline.history import Entry, Move, check_reason, earlier_champions, is_another_model, move_champion
from pipeline.params import load_section
from pipeline.placement import Placement, read_placement
from pipeline.scoring import registered_model
from pipeline.stages.register import RegisterConfig
from unet_core.errors import RegistryError


def rollback(*, reason: str) -> None:
    """Let `champion` name the version that it named before; a second rollback goes one further back."""
    check_reason(reason)
    placement, client, name = _registry()

    def decide(entries: Sequence[Entry]) -> Move:
        for number in earlier_champions(entries):
            version = tracking.version_by_number(client, name, number)
            why = _why_not(entries, version) if version else f"{name} version {number} is not in the registry any more"
            if version is not None and why is None:
                sha256 = version.model_sha256
                return Move(action="rolled back", version=number, reason=reason, model_sha256=sha256)
            say(f"left out: {why}")
        raise RegistryError(f"no earlier champion of {name} to go back to. Look with `unet history`.")

    done = move_champion(client, name, decide)
    announce(placement.on_promotion, name, done)
    say(f"{name} version {done.version} is champion again, before it was version {done.before}")


def _why_not(entries: Sequence[Entry], version: tracking.Version) -> str | None:
    """Why a version can't be champion again, or None: nothing may make the champion a model that nobody can load."""
    if is_another_model(entries, version):
        return f"{version.name} version {version.number} is another model than the champion that had this number"
    try:
        with registered_model(version):
            return None
    except RegistryError as error:
        return str(error)


def show_history() -> None:
    """Print every move of the alias, oldest first, after finishing what was begun."""
    _, client, name = _registry()
    entries = history.settle(client, name)
    if not entries:
        raise RegistryError(f"no version of {name} was ever promoted. Run `unet promote`.")
    for entry in entries:
        say(history.describe(entry))


def _registry() -> tuple[Placement, tracking.Client, str]:
    placement = read_placement()
    name = load_section("register", RegisterConfig).model
    return placement, tracking.connect(placement.tracking_uri, placement.experiment), name
