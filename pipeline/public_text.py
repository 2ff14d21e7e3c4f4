"""What of a text others may read."""

import re

#: Schemes whose hosts have ports, which look like the beginning of a password: digits before a slash.
_PORTED = ("http", "https", "ray", "ssh", "sftp", "hdfs", "webdav", "webdavs")
_IS_PORTED = "|".join(f"(?<={scheme})" for scheme in _PORTED)
_IS_OTHER = "".join(f"(?<!{scheme})" for scheme in _PORTED)
#: Before a host: a user, or user and password, which may hold slashes as keys of S3 do.
_BEFORE_HOST = re.compile(
    rf"(?:(?:{_IS_PORTED})://(?:[^/@\s\[]*:(?!\d+/)\S*|[^/\s]*)|{_IS_OTHER}://(?:[^/@\s\[]*:\S*|[^/\s]*))@"
)
#: Behind a path: signatures and the like.
_QUERY = re.compile(r"(://[^\s?\"']*)\?[^\s\"']*")
_FRAGMENT = re.compile(
    r"(://[^\s#\"']*)#(?:[^\s\"']*&)?[\w-]*(?:token|secret|password|signature|key)=[^\s\"']*", re.IGNORECASE
)


def public(text: str) -> str:
    """A text without what an address may carry and nobody else must see: passwords, tokens and signatures."""
    return _FRAGMENT.sub(r"\1", _QUERY.sub(r"\1", _BEFORE_HOST.sub("://***@", text)))


def public_address(address: str) -> str:
    """The same for what is known to be one address: all before its last `@` may be a password."""
    scheme, _, rest = address.rpartition("@")[0].partition("://")
    return public(f"{scheme}://***@{address.rpartition('@')[2]}" if rest else address)


def holds_secret(address: str) -> bool:
    """Whether an address carries one of these. The name alone of a user, by which SSH knows whom to let in, is none."""
    nameless = re.sub(r"^(ssh|sftp|hdfs|webhdfs|webdavs?)://[^/:@\s]*@", r"\1://", address)
    return public(nameless) != nameless
