"""Which names are taken for secrets: a table, and the names of this project."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.secret_files import is_secret_file

SECRET = [
    *(".env", ".env.local", "prod.env", ".envrc", "infra/key.pem", "server.key", "Key.PEM", "keys/putty.ppk"),
    *("id_rsa", "id_ed25519", "deploy/id_dsa"),
    *("credentials", "aws/credentials.csv", "aws_credentials", ".git-credentials", "my-credentials.json"),
    *("gcpCredentials.json", "service-account.json", "my_service_account-2.json", "kaggle.json"),
    *(
        "secret",
        "secrets",
        "secret.txt",
        "secrets.yaml",
        "my-secrets.yaml",
        "k8s/db_secret.yml",
        "client_secret_1.json",
    ),
    *(".streamlit/secrets.toml", "secrets.py", "app/Secrets.py", "secret.py", "credentials.py"),
    *("password", "password.txt", "db-passwords.csv", "passwd"),
    *("token", "token.txt", "token.json", "api_token", "hub-token.txt", "auth_token", ".vault-token", "api_tokens.txt"),
    *("kubeconfig", "kubeconfig.yaml", "prod.kubeconfig", "terraform.tfvars", "terraform.tfstate.backup"),
    *(".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".dockercfg", ".s3cfg", ".boto", "rclone.conf"),
    *(".dvc/config.local", ".kube/config", ".docker/config.json", ".aws/config", "home/.ssh/config", ".gnupg/x.gpg"),
    *(".KUBE/config", "infra/secrets/database.yaml"),
    *("mytoken.txt", "authtoken", "access_token.csv", "ray_token.sh", "github_pat.txt", "pat.txt", ".vault_pass"),
    *("kaggle (1).json", "key (2).json", "server (1).pem", "rootkey (1).csv", "service_key.json"),
    *("user_accessKeys.csv", "user_accessKeys (1).csv", "rootkey.csv", "key.json", "sa-key.json", "gcp-key.json"),
    *("gcpKey.json", "private_key.json", "privatekey", "api_key.txt", "api-keys-prod.yaml", "apikeys.yaml"),
    *("APIKey.json", "clientsecret.json", "dbPassword.txt", "creds.yaml", "project-firebase-adminsdk-x1.json"),
    *(".dockerconfigjson", "docker-config.json", "mlflow.env.prod", ".env_prod"),
    *("prod.env.bak", ".env~", "auth_token.bak", "secrets.py.orig", "server.key.old", "rootkey.csv.bak"),
    *(".envrc.local", ".envrc-prod", ".env.example.local", "app/prod.env.sample.local", ".envrc.example.local"),
    *(".env.example.local.bak", ".databrickscfg", "secring.gpg", "keys/SecRing.gpg", "vpn/office.ovpn"),
    *(".azure/msal_token_cache.json", "home/.azure/accessTokens.json"),
    *(".config/gh/hosts.yml", "home/.config/gh/hosts.yml"),
]
HARMLESS = [
    *(
        ".env.example",
        "secrets.yaml.template",
        "env.yaml",
        "environment.yml",
        "params.yaml",
        ".dvc/config",
        "kube/config",
        "docker/config.json",
    ),
    *("tests/test_credentials.py", "pipeline/keys.py", "pipeline/token.py", "docs/secrets.md", "secret_files.py"),
    *("images/secretion.png", "secretory_001.tif", "tokenizer.json", "special_tokens_map.json", "token-mixer.yaml"),
    *(".env.dist", "infra/secret.example.yaml", "docs/secret-management.rst", ".secrets.baseline", "token.pt"),
    *(".github/workflows/secrets-scan.yaml", ".docker/Dockerfile", ".aws/task.json"),
    *("boto.txt", "keyboard.csv", "monkey.png", "compass.yaml", "Dockerfile", "service.json"),
    *("tokenizer.py", "tokens.py", "token.py.bak", "added_tokens.json", "token_counts.csv", "get_token.sh", "token.ts"),
    *("keys.py", "keyed.py", "keypoints.csv", "key_frames.json", "keymap.json", "hotkeys.yaml", "keys.csv", "key.csv"),
    *("monkeys.csv", "turkey.json", "primary_key.sql", "primary_key.json", "class_key.json", "visa_key.json"),
    *("api_key.ts", "api_keynote.txt", "apikey.go", "access_keys.sql", "private_keyboard.json"),
    *("patch.py", "patterns.py", "path.txt", "pat.png", "pat_01.csv", "compat.txt", "spatial.json", "pass.csv"),
    *("rotate_access_keys.sh", "first_pass.yaml", "refresh_token.sh", "jest.env.js", "config.env.ts"),
    *("root_key_points.csv", "beetroot_keys.csv", "gcp_keys.csv", "gcp-points.json"),
    *(".env-example", ".env_example", ".env-sample", ".env_template", "image (1).png"),
    *(
        "env.py",
        "environment.yaml",
        "gpu.env.yaml",
        "env.sh",
        "sacred.yaml",
        "results.csv.bak",
        "pipeline/cli.py.orig",
        "data/.bak",
    ),
    *(".envrc.example", ".env.local.example", "example.env.local.md", "env.example.local", "recipe.example.local"),
    *("pubring.gpg", "release.tar.gz.asc", "constraints.txt.sig", "databricks.yml", "openvpn.md"),
    *("gh/hosts.yml", "inventory/hosts.yml", "my.config/gh/hosts.yml", ".config/gh/config.yml"),
    *("azure/msal_token_cache.json", ".azure/config"),
]


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_known_by_its_name_or_its_folder(name: str) -> None:
    assert is_secret_file(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_sounds_alike_is_none(name: str) -> None:
    assert not is_secret_file(name)


def test_nothing_of_this_project_is_held_back(repository: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, check=True, capture_output=True).stdout
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    assert "pipeline/secret_files.py" in names
    assert [name for name in names if is_secret_file(name)] == []
