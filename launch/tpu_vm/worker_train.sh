#!/usr/bin/env bash
# Trains on this worker, as a service: it outlives a lost connection, and SIGTERM reaches it when the machine is taken.
#   bash worker_train.sh RECIPE --run-dir RUN
set -euo pipefail

# What a lost connection left running saves and stops here.
sudo systemctl stop gnp-scale.service 2>/dev/null || true

# Preemption leaves a machine 30 s.
exec sudo systemd-run --unit=gnp-scale --collect --wait --pipe --uid="$(id -u)" --working-directory="$HOME" \
    --setenv=GNP_SCALE_GRACE_S=25 --property=TimeoutStopSec=28 --property=LimitMEMLOCK=infinity \
    "$HOME/gnp/bin/gnp-scale" train "$@"
