"""What of a text others may read."""

import re


def public(text: str) -> str:
    """A text without what an address may carry and nobody else must see: passwords and signatures."""
    return re.sub(r"(://[^\s?\"']*)\?[^\s\"']*", r"\1", re.sub(r"://[^/\s]*@", "://***@", text))
