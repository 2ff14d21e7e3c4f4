"""Files that may hold secrets, by their names: neither sent to a cluster nor kept in a model's lineage."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

#: Where tools keep what they know of a user, and nothing that belongs into a repository.
SECRET_FOLDERS = frozenset({".gnupg", ".kube", ".ssh", ".secrets", "secrets"})
#: In folders that have other files, too.
SECRET_PLACES = (
    *(".aws/config", ".aws/credentials", ".docker/config.json", ".config/gh/hosts.yml"),
    *(".azure/accesstokens.json", ".azure/msal_token_cache.json"),
)
SECRET_NAMES = (
    # As prod.env.local, but not gpu.env.yaml, which is conda's.
    *(".env", ".env[-._ ]*", "*.env", "*.env.[!y]*", ".envrc", ".envrc[-._ ]*"),
    *("*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.ovpn", "secring.gpg"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "key", "key.json", "key.txt", "pat", "pat.txt"),
    # As Google and Amazon name what one downloads.
    *("gcpkey.json", "gcp[-_]key*.json", "rootkey*.csv"),
    *("*service-account*.json", "*service_account*.json", "*adminsdk*.json", "kaggle.json"),
    *("kubeconfig*", "*.kubeconfig", "*.tfvars", "*.tfvars.json", "*.tfstate", "*.tfstate.*"),
    *(".netrc", "_netrc", ".pgpass", ".my.cnf", ".pypirc", ".npmrc", ".dockercfg", ".htpasswd", ".databrickscfg"),
    *("*.dockerconfigjson", "dockerconfig.json", "docker[-_]config.json"),
    *(".s3cfg", ".boto", "rclone.conf", "config.local", "ray_token.sh"),
)
#: A word of the name, as in my-secrets.yaml and .git-credentials, but not in secretion.png.
SECRET_WORDS = re.compile(r"(?<![a-z])(secrets?|credentials?|passwords?|passwd)(?![a-z])", re.ASCII)
#: How the name of a file of values may end, in which code's does not.
VALUES = r"(\.(txt|json|ya?ml|toml|csv|ini|cfg|conf))?$"
#: The last word of such a name, as in mytoken.txt and .vault_pass.
SECRET_VALUES = re.compile(
    r"((secret|credential|password|passphrase|token)s?|creds|passwd"
    rf"|(?<![a-z])(db|vault)[-_.]?pass|(?<![a-z])(github|gitlab|gh|my)[-_.]?pat){VALUES}",
    re.ASCII,
)
#: A kind of key in such a name, as in user_accessKeys.csv and, of a service account, sa-key.json.
SECRET_KEYS = re.compile(
    r"((api|access|auth|private|secret|ssh|rsa|deploy|signing|encryption)[-_. ]?keys?(?![a-z])[^.]*"
    rf"|(master|account|service|aws|azure|google|firebase|(?<![a-z])sa)[-_. ]?keys?){VALUES}",
    re.ASCII,
)
SECRET_PARTS = (SECRET_WORDS, SECRET_VALUES, SECRET_KEYS)
#: Of a copy, which is as secret as the file itself.
BACKUP = re.compile(r"(?<=[^/])(\.(bak|backup|old|orig|save|swp)|~)+$| \(\d+\)(?=(\.\w+)?$)")
#: Names that are about secrets and hold none.
HARMLESS = (
    *("*[-_.]example*", "*[-_.]sample*", "*[-_.]template*", "*.dist", ".secrets.baseline"),
    *("*.py", "*.js", "*.ts", "*.md", "*.rst"),
    # A tokenizer's words.
    "added_tokens.json",
)
#: Names that hold them all the same: Python, and a copy of an example that somebody filled in.
SECRET_ANYWAY = ("secret.py", "secrets.py", "credentials.py", "*.env.*.local", ".envrc.*.local")


def is_secret_file(name: str) -> bool:
    """Whether a file of this name, a path with slashes, is taken for a secret."""
    name = BACKUP.sub("", name.lower())
    if fits(name, SECRET_ANYWAY):
        return True
    path = PurePosixPath(name)
    is_named_so = fits(name, SECRET_NAMES) or any(known.search(path.name) for known in SECRET_PARTS)
    is_kept_so = not SECRET_FOLDERS.isdisjoint(path.parts[:-1]) or any(
        f"/{path}".endswith(f"/{place}") for place in SECRET_PLACES
    )
    # What GitHub runs is there for all to read.
    is_harmless = fits(name, HARMLESS) or path.parts[:1] == (".github",)
    return (is_named_so or is_kept_so) and not is_harmless


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether the last part of a path is of one of the patterns, in any case."""
    base = PurePosixPath(name).name.lower()
    return any(fnmatchcase(base, pattern) for pattern in patterns)
