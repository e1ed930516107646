#!/usr/bin/env bash
# Trains on a Cloud TPU slice: requests one, installs, trains on all its workers, and requests it again when it is lost.
#   launch/tpu_vm/train.sh [--dry-run] configs/digits.py:quickstart --run-dir gs://my-bucket/runs/digits
# --dry-run prints the commands of a successful start, and runs none of them.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${TPU_NAME:?a name for the slice}" "${PROJECT:?}" "${ZONE:?such as us-west4-a}"
: "${ACCELERATOR_TYPE:?such as v5litepod-16}" "${RUNTIME_VERSION:?such as v2-alpha-tpuv5-lite}"
# Without a bucket, all workers need a shared file system.
if [[ $* != *--run-dir[=\ ]gs://* ]]; then
    : "${RUNS_NFS:?a shared file system, such as 10.0.0.2:/runs, to be mounted as /mnt/runs; or give --run-dir gs://...}"
fi
: "${MAX_FAILURES:=10}" "${RETRY_S:=30}"

where=(--project="$PROJECT" --zone="$ZONE")

if [[ ${1:-} == --dry-run ]]; then
    shift
    exec 3>&1
    gcloud() {
        printf 'gcloud%s\n' "$(printf ' %q' "$@")" >&3
        if [[ $* == *describe* ]]; then
            echo "${assumed_state:-NONE}"
        fi
    }
fi

if [[ " $* " == *" --dry-run "* ]]; then
    echo "--dry-run comes before the recipe: give it first" >&2
    exit 2
fi
wheels=(dist/gnp_scale-*.whl)
if [[ ${#wheels[@]} != 1 || ! -f ${wheels[0]} ]]; then
    echo "dist/ must hold one wheel of gnp_scale, and has: ${wheels[*]}; see launch/tpu_vm/README.md" >&2
    exit 2
fi

main() {
    local code num_failures=0
    while true; do
        code=0 got_slice=
        attempt "$@" || code=$?
        case $code in
            0) queued_resources delete "$TPU_NAME" --force --quiet && exit 0 ;;
            2 | 77)
                echo "exit code $code: starting again would not help. The slice is kept; to give it back:"
                echo "gcloud compute tpus queued-resources delete $TPU_NAME --force ${where[*]}"
                exit "$code"
                ;;
        esac
        # It is not a failure of the run if it has saved, or if its slice was preempted.
        if [[ $code != 75 ]] && [[ ! $got_slice || $(state) == ACTIVE ]] && ((++num_failures >= MAX_FAILURES)); then
            echo "exit code $code, after $num_failures failures: giving up. The slice, if any, is kept."
            exit "$code"
        fi
        echo "exit code $code: starting again in $RETRY_S s"
        sleep "$RETRY_S"
    done
}

# Requests a slice, and trains on it until the end or a failure.
attempt() {
    wait_for_slice &&
        tpu_vm scp "${wheels[0]}" requirements/{tpu,gcs}.txt launch/tpu_vm/worker_*.sh "$TPU_NAME:" --worker=all &&
        on_all_workers "bash worker_setup.sh${RUNS_NFS:+ $RUNS_NFS}" &&
        on_all_workers "bash worker_train.sh$(printf ' %q' "$@")"
}

wait_for_slice() {
    while true; do
        case $(state) in
            ACTIVE) got_slice=yes && return ;;
            NONE) create || return ;;
            # Preempted, or refused: the request stays until it is deleted, and is never granted again.
            FAILED | SUSPENDED) queued_resources delete "$TPU_NAME" --force --quiet ;;
            *) sleep "$RETRY_S" ;;
        esac
    done
}

create() {
    queued_resources create "$TPU_NAME" --node-id="$TPU_NAME" --spot \
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" && assumed_state=ACTIVE
}

state() {
    queued_resources describe "$TPU_NAME" --format="value(state.state)" 2>/dev/null || echo NONE
}

on_all_workers() {
    tpu_vm ssh "$TPU_NAME" --worker=all --batch-size=all --command="$1"
}

queued_resources() {
    gcloud compute tpus queued-resources "$@" "${where[@]}"
}

tpu_vm() {
    gcloud compute tpus tpu-vm "$@" "${where[@]}"
}

main "$@"
