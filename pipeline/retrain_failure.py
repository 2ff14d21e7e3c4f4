"""A retraining that failed: people hear of it, in a sentence that holds no secret."""

import logging
from pathlib import Path

from pipeline.public_text import public
from pipeline.retrain_summary import Summary, write_summary
from pipeline.webhook import call_webhook
from unet_core.errors import UnetError

log = logging.getLogger(__name__)


def tell_of_failure(summary: Summary, *, report: Path, webhook: str | None) -> None:
    """Write the summary and call the webhook; on a full disk people hear of it all the same."""
    try:
        write_summary(summary, report)
    except OSError as error:
        log.warning("the summary in %s is not of this call: it can't be written: %s", report.parent, error.strerror)
    call_webhook(webhook, summary.body())


def to_sentence(error: Exception) -> str:
    """A failure for others than who started the command."""
    if isinstance(error, UnetError):
        return str(error)
    if isinstance(error, OSError):
        # Of an address that refused, Python makes the file's name.
        return public(f"{error.strerror or type(error).__name__}{f': {error.filename}' if error.filename else ''}")
    # Its text may hold anything.
    return f"{type(error).__name__}, which nobody foresaw: the command's own output tells more"
