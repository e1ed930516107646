#!/usr/bin/env bash
# Runs on each worker before training; skips the steps that are already done.
#   bash worker_setup.sh [HOST:/SHARE]
set -euo pipefail
runs_nfs=${1:-}

if [[ $runs_nfs ]] && ! mountpoint --quiet /mnt/runs; then
    sudo apt-get install --yes --quiet nfs-common
    sudo mkdir -p /mnt/runs
    sudo mount -t nfs "$runs_nfs" /mnt/runs
fi

# The image's own Python may be older than 3.12.
python3 -m pip install --user --quiet uv
uv=$HOME/.local/bin/uv
[[ -d gnp ]] || "$uv" venv --quiet --python 3.12 gnp
for packages in tpu gcs; do
    "$uv" pip install --quiet --python gnp/bin/python --no-deps --require-hashes -r "$packages.txt"
done
"$uv" pip install --quiet --python gnp/bin/python --no-deps --reinstall ./gnp_scale-*.whl
