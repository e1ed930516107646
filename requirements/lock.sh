#!/bin/sh
# Resolves every set of dependencies again, with hashes. Needs `uv`; run by `make lock`.
# The release date limit excludes versions that may not yet be on every mirror.
set -eu
cd "$(dirname "$0")/.."
not_newer_than=${1:-2026-10-31}
lock() {
    out=$1
    shift
    uv pip compile pyproject.toml "$@" --universal --python-version 3.12 --generate-hashes --no-strip-extras \
        --no-emit-index-url --no-header --quiet --exclude-newer "$not_newer_than" -o "requirements/$out.txt"
}
lock base
for extra in cuda tpu gcs s3 parquet sharpness profile; do lock "$extra" --extra "$extra" -c requirements/base.txt; done
for group in dev docs optional tpu-compiler gpu-compiler; do lock "$group" --group "$group" -c requirements/base.txt; done
