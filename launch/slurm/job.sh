# shellcheck shell=bash
# Shared by the batch scripts: checks the nodes, starts the trainer, and acts on its exit code.
set -euo pipefail

# Number of restarts, including preemptions, after which a failed run is not restarted. A run that saved always is.
: "${MAX_RESTARTS:=100}"

# The trainer's time from a signal to the kill: the minimum, for scancel and for partitions without a GraceTime.
if [[ -z ${GNP_SCALE_GRACE_S:-} ]]; then
    GNP_SCALE_GRACE_S=$(scontrol show config | sed -n 's/^KillWait *= \([0-9]*\) sec$/\1/p')
fi
export GNP_SCALE_GRACE_S

# srun requests as many cores per task as sbatch did, and one process drives all GPUs of its node.
if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
if [[ ${SLURM_GPUS_ON_NODE:-} ]]; then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
    export JAX_LOCAL_DEVICE_IDS
fi

# Starts the job again on other nodes, if one of these nodes is unhealthy.
check_nodes() {
    local unhealthy
    if ! unhealthy=$(srun --kill-on-bad-exit=0 bash launch/slurm/node_health.sh | paste -sd,); then
        echo "unhealthy nodes: ${unhealthy:-some did not answer}"
        go_on_unless_failing 1 "$unhealthy"
    fi
}

train() {
    local code=0
    # Processes exit one after the other: the first exit must not end the others.
    srun --kill-on-bad-exit=0 --wait=120 gnp-scale train "$@" || code=$?
    case $code in
        0) ;;
        2 | 77) echo "exit code $code: starting again would not help" && exit "$code" ;;
        75) go_on ;;
        *) go_on_unless_failing "$code" ;;
    esac
}

go_on_unless_failing() {
    local code=$1 unhealthy=${2:-}
    if ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
        echo "exit code $code after $SLURM_RESTART_COUNT restarts: giving up" && exit "$code"
    fi
    go_on "$unhealthy"
}

# Makes Slurm start this job again, except on the given nodes; not if it was cancelled.
go_on() {
    local unhealthy=${1:-} state excluded
    read -r state excluded < <(squeue --noheader --jobs="$SLURM_JOB_ID" --format="%T %x")
    if [[ $state != RUNNING ]]; then
        exit 75
    fi
    # Slurm sends SIGTERM to the script of a job that is requeued, and only a pending job's nodes can be changed.
    trap '' TERM
    scontrol requeue "$SLURM_JOB_ID"
    if [[ $unhealthy ]]; then
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${excluded:+$excluded,}$unhealthy"
    fi
    exit 75
}
