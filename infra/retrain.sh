#!/usr/bin/env bash
# One retraining, the same for every scheduler: what is new in the source, the stages that are stale, results to the DVC
# remote, the gate. It works on the clone that it lies in, whose DVC has a default remote; README.md has the environment.
#
#     infra/retrain.sh             leaves ledger, dvc.lock and metrics in the tree
#     infra/retrain.sh BRANCH      commits them on a new branch, and pushes it
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .unet
exec 9>.unet/retrain.lock
flock --nonblock 9 || { echo "another retraining runs in $PWD: nothing done"; exit 0; }

dvc pull --allow-missing # what was never built is not there either
unet add
dvc repro
dvc push
unet promote

if [ $# -gt 0 ] && [ -n "$(git status --porcelain)" ]; then
  git switch --create "$1"
  git add --all
  git commit --quiet --message "Retrain"
  git push --quiet --set-upstream origin "$1"
fi
