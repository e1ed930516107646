#!/usr/bin/env bash
# Trains on this worker, as a service: it survives a lost connection, and gets SIGTERM when the machine is preempted.
#   bash worker_train.sh RECIPE --run-dir RUN
set -euo pipefail

# A run that is left from a lost connection saves and stops here.
sudo systemctl stop gnp-scale.service 2>/dev/null || true

# After a preemption notice a machine has 30 s.
exec sudo systemd-run --unit=gnp-scale --collect --wait --pipe --uid="$(id -u)" --working-directory="$HOME" \
    --setenv=GNP_SCALE_GRACE_S=25 --property=TimeoutStopSec=28 --property=LimitMEMLOCK=infinity \
    "$HOME/gnp/bin/gnp-scale" train "$@"
