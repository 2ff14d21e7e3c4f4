"""Others are told what came of a command: JSON to the address in UNET_WEBHOOK, which is never shown."""

import json
import logging
import threading
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

log = logging.getLogger(__name__)

#: For the whole call.
TIMEOUT_SECONDS = 10.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is posted would get lost on the way, and nobody would know."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Leave the answer as it is: an error."""


def call_webhook(url: str | None, body: Mapping[str, Any]) -> None:
    """Post `body`; what fails is a warning. Without an address nobody is told."""
    if url is None:
        return
    text = json.dumps(body).encode()
    problems: list[str | None] = []
    # A socket's limit counts anew with each byte that it reads; a lock is held meanwhile.
    call = threading.Thread(target=lambda: problems.append(_post(url, text)), daemon=True)
    call.start()
    call.join(TIMEOUT_SECONDS)
    why = problems[0] if problems else f"no whole answer came within {TIMEOUT_SECONDS:g} s"
    if why is not None:
        log.warning("UNET_WEBHOOK was not told: %s", why)


def _post(url: str, text: bytes) -> str | None:
    """What went wrong, or None; never an error's own text, which may repeat the address."""
    try:
        request = urllib.request.Request(  # noqa: S310 placement.py takes http and https only
            url,
            data=text,
            headers={"Content-Type": "application/json", "User-Agent": "unet"},
            method="POST",
        )
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_SECONDS):
            return None
    except HTTPError as error:
        with error:
            return f"it answered with {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
        return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__
