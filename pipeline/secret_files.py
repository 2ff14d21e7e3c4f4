"""Files that may hold secrets, by their names: neither sent to a cluster nor kept in a model's lineage."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

#: Where tools keep what they know of a user.
SECRET_FOLDERS = frozenset({".aws", ".azure", ".docker", ".gnupg", ".kube", ".ssh", ".secrets", "secrets"})
SECRET_NAMES = (
    *(
        ".env",
        ".env.*",
        "*.env",
        ".envrc",
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.ppk",
        "*.jks",
        "*.keystore",
        "*.kdbx",
    ),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *("*credentials.json", "*service-account*.json", "*service_account*.json", "kaggle.json"),
    *("kubeconfig*", "*.kubeconfig", "*.tfvars", "*.tfvars.json", "*.tfstate", "*.tfstate.*"),
    *(".netrc", "_netrc", ".pgpass", ".my.cnf", ".pypirc", ".npmrc", ".dockercfg", ".htpasswd"),
    *(".s3cfg", ".boto", "rclone.conf", "config.local"),
)
#: A word of the name, as in my-secrets.yaml and .git-credentials, but not in secretion.png; a token's is the last.
SECRET_WORDS = re.compile(
    r"(?<![a-z])(secrets?|credentials?|passwords?|passwd)(?![a-z])|(?<![a-z])token(\.[a-z]+)?$", re.ASCII
)
#: Names that are about secrets and hold none.
HARMLESS = ("*.example", "*.sample", "*.template", "*.py", "*.md")
#: Python that holds them all the same.
SECRET_CODE = ("secret.py", "secrets.py", "credentials.py")


def is_secret_file(name: str) -> bool:
    """Whether a file of this name, a path with slashes, is taken for a secret."""
    if fits(name, SECRET_CODE):
        return True
    path = PurePosixPath(name.lower())
    is_named_so = fits(name, SECRET_NAMES) or SECRET_WORDS.search(path.name) is not None
    is_kept_so = not SECRET_FOLDERS.isdisjoint(path.parts[:-1])
    return (is_named_so or is_kept_so) and not fits(name, HARMLESS)


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether the last part of a path is of one of the patterns, in any case."""
    base = PurePosixPath(name).name.lower()
    return any(fnmatchcase(base, pattern) for pattern in patterns)
