"""Files that may hold secrets, by their names: neither sent to a cluster nor kept in a model's lineage."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

SECRET_NAMES = (
    *(".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *("id_rsa*", "id_ecdsa*", "id_ed25519*"),
    *("credentials*", "*credentials.json", "secret.*", "secrets.*", "kubeconfig*", "*.tfvars", "auth_token"),
    *(".netrc", ".pgpass", ".pypirc", ".htpasswd", "config.local"),
)
#: Names that are about secrets and hold none.
HARMLESS = (".env.example", ".env.sample", ".env.template", "*.py", "*.md")


def is_secret_file(name: str) -> bool:
    """Whether a file of this name is taken for a secret, wherever it lies."""
    return fits(name, SECRET_NAMES) and not fits(name, HARMLESS)


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether the last part of a path is of one of the patterns, in any case."""
    base = PurePosixPath(name).name.lower()
    return any(fnmatchcase(base, pattern) for pattern in patterns)
