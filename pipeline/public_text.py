"""What of a text others may read."""

import re

#: Before a host: a user, or user and password, which may hold slashes as keys of S3 do; a number before one is a port.
_BEFORE_HOST = re.compile(r"://(?:[^/@\s]*:(?!\d+/)\S*|[^/\s]*)@")
#: Behind a path: signatures and the like.
_QUERY = re.compile(r"(://[^\s?\"']*)\?[^\s\"']*")
_FRAGMENT = re.compile(r"(://[^\s#\"']*)#[^\s\"']*(?:token|secret|password|signature|key)[^\s\"']*", re.IGNORECASE)


def public(text: str) -> str:
    """A text without what an address may carry and nobody else must see: passwords, tokens and signatures."""
    return _FRAGMENT.sub(r"\1", _QUERY.sub(r"\1", _BEFORE_HOST.sub("://***@", text)))


def holds_secret(address: str) -> bool:
    """Whether an address carries one of these. The name alone of a user, by which SSH knows whom to let in, is none."""
    nameless = re.sub(r"^(ssh|sftp|hdfs)://[^/:@\s]*@", r"\1://", address)
    return public(nameless) != nameless
