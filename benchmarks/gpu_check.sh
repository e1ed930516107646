#!/usr/bin/env bash
# Checks and measures gnp_scale on one GPU in less than ten minutes. Run it in the root of the repository:
#
#   bash benchmarks/gpu_check.sh [PART ...]    all, or some of: numerics bench resume ceilings kernels steps_bfloat16 torch steps_float32
#   bash benchmarks/gpu_check.sh determinism flags   what takes longer: bits again, XLA flags
#
# PYTHON (default: python3) has the dependencies. Wheels of those that it lacks may lie in .whl/. $OUT (default: out) gets
# report.txt, which is also printed, and logs.tgz. GPU_CHECK_TINY=1 uses tiny sizes and needs no GPU.
set -u
python=${PYTHON:-python3} out=${OUT:-out} scratch=$(mktemp -d)
site=$scratch/site patience=${GPU_CHECK_TINY:+10}
parts=" ${*:-numerics bench resume ceilings kernels steps_bfloat16 torch steps_float32} "
# Only for this project: PyTorch's compiler needs the Triton that it came with.
ours="$site:$PWD:$PWD/kernels"
# Processes share the GPU, so none takes its memory in advance.
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false TRITON_DEFAULT_FP_FUSION=1
mkdir -p "$out"

part() { # part NAME SECONDS COMMAND...: shows and keeps what it prints; kills it after so many seconds
    local name=$1 seconds=$(($2 * ${patience:-1})) left=$((575 * ${patience:-1} - SECONDS)) code
    shift 2
    case $parts in *" $name "*) ;; *) return ;; esac
    seconds=$((left < seconds ? left : seconds))
    ((seconds > 5)) || { echo "== $name: no time left" && return 1; }
    timeout "$seconds" "$@" 2>"$scratch/$name.err" | tee "$scratch/$name.txt"
    code=${PIPESTATUS[0]}
    ((code == 0)) || tail -n 8 "$scratch/$name.err"
    echo "== $name: exit $code, after $SECONDS s in all"
    return "$code"
}

main() {
    local failed=0
    if ls .whl/*.whl >/dev/null 2>&1; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || return
    fi
    command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    PYTHONPATH=$ours "$python" -m pip list 2>/dev/null |
        grep -iE '^(jax.*|triton|flax|optax|orbax-checkpoint|tensorstore|grain|numpy|torch|timm|nvidia-cudnn-cu13) ' | xargs
    local jobs=() name
    # Side by side, because none of them is timed: the tests of the operations against float64 without those for CPUs,
    # the check of `gnp-scale bench kernels`, and a kill.
    part numerics 170 env PYTHONPATH="$ours" "$python" -m pytest -q --tb=short --noconftest -p no:cacheprovider -W default \
        -n "$(($(nproc) > 12 ? 12 : $(nproc)))" tests/kernels/test_kernels_reference.py \
        -k "not every and not cpu and not saves" >"$scratch/1" &
    jobs+=($!)
    part bench 170 env PYTHONPATH="$ours" "$python" -m gnp_scale.cli bench kernels --model vit_mu --no-tuning --rounds 5 \
        >"$scratch/2" &
    jobs+=($!)
    part resume 170 env PYTHONPATH="$ours" "$python" -m benchmarks.gpu resume "$scratch" >"$scratch/3" &
    jobs+=($!)
    for name in 1 2 3; do
        wait "${jobs[name - 1]}" || failed=1
        cat "$scratch/$name"
    done
    for name in ceilings kernels steps_bfloat16 torch steps_float32 determinism flags; do
        case $name in
        torch) part torch 150 "$python" benchmarks/gpu/torch_steps.py || failed=1 ;;
        *) part $name 250 env PYTHONPATH="$ours" "$python" -m benchmarks.gpu $name "$scratch" || failed=1 ;;
        esac
    done
    echo "== $SECONDS s in all"
    tar -C "$scratch" --exclude=./site --exclude=./runs -czf "$out/logs.tgz" .
    rm -rf "$scratch"
    return $failed
}

set -o pipefail
main 2>&1 | tee "$out/report.txt"
