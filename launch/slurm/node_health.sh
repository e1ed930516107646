#!/usr/bin/env bash
# Runs once on each node before training. A node that cannot train prints its name, and the reason to standard error.
# Add checks for known problems of your cluster.
set -euo pipefail

unhealthy() {
    echo "$SLURMD_NODENAME: $*" >&2
    echo "$SLURMD_NODENAME"
    exit 1
}

command -v gnp-scale >/dev/null || unhealthy "no gnp-scale on PATH: is the file system of the environment mounted?"

free_mib=$(df --output=avail --block-size=1M "${TMPDIR:-/tmp}" | tail -1)
((free_mib >= 1024)) || unhealthy "only $free_mib MiB free in ${TMPDIR:-/tmp}"

if [[ ${SLURM_GPUS_ON_NODE:-} ]]; then
    errors=$(timeout 60 nvidia-smi --query-gpu=ecc.errors.uncorrected.volatile.total --format=csv,noheader,nounits) ||
        unhealthy "nvidia-smi fails or hangs"
    num_gpus=$(wc -l <<<"$errors")
    ((num_gpus >= SLURM_GPUS_ON_NODE)) || unhealthy "$num_gpus GPUs, of $SLURM_GPUS_ON_NODE"
    ! grep -q '^[1-9]' <<<"$errors" || unhealthy "a GPU has uncorrected memory errors"
fi
