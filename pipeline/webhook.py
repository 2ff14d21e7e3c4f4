"""Others are told what came of a command: JSON to the address in UNET_WEBHOOK, which is never shown."""

import json
import logging
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is posted would get lost on the way, and nobody would know."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Leave the answer as it is: an error."""


def call_webhook(url: str | None, body: Mapping[str, Any]) -> None:
    """Post `body`; what fails is a warning. Without an address nobody is told."""
    if url is None:
        return
    request = urllib.request.Request(  # noqa: S310 placement.py takes http and https only
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "unet"},
        method="POST",
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_SECONDS):
            return
    except HTTPError as error:
        why = f"it answered with {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        # Not the error's own text, which may repeat the address.
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
        why = (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__
    log.warning("UNET_WEBHOOK was not told: %s", why)
