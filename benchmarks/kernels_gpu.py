"""Launches and bytes between the passes of a penalised step on 8 H100, as XLA:GPU compiles it; no GPU is needed.

Command: JAX_PLATFORMS=cpu python -m benchmarks.kernels_gpu (after `make gpu-compiler`; some minutes)
"""

from benchmarks.hardware import MODELS, Dtype, compiled_step, h100_mesh
from benchmarks.launches import Count, count
from benchmarks.timing import write_report
from gnp_scale.config.run import Kernels

VARIANTS: dict[str, tuple[Kernels, Dtype]] = {
    "XLA, float32": ("xla", "float32"),
    "Triton, float32": ("triton", "float32"),
    "XLA, bfloat16": ("xla", "bfloat16"),
    "Triton, bfloat16": ("triton", "bfloat16"),
}


def main() -> None:
    """Compiles every variant of each model and writes the table."""
    lines = [
        "Counted in the HLO of the whole step, compiled by the real XLA:GPU compiler for 8 H100 with parameters",
        "sharded over all (fsdp 8); bytes are of operands and results on one device. These are facts about a program,",
        "not measurements: nothing was run. bfloat16: the model computes in that type, and gradients and the copy that",
        "they are taken at are in it. Layout: kernels of the whole step that only transpose or copy; XLA's own loops",
        "take in some changes of layout that a kernel leaves to XLA. All: every kernel of the step, with its passes.",
        "",
        "| model | arithmetic | launches | MB | of XLA float32 | layout launches | layout MB | all launches |",
        "|---|---|---|---|---|---|---|---|",
    ]
    mesh = h100_mesh()
    for model in MODELS:
        counts = {name: count(compiled_step(mesh, model, *variant)) for name, variant in VARIANTS.items()}
        lines += [_row(model, name, found, counts["XLA, float32"]) for name, found in counts.items()]
    write_report("kernels-gpu", "Kernel launches of a penalised step, compiled for H100", lines)


def _row(model: str, name: str, found: Count, base: Count) -> str:
    megabytes, layout_megabytes = found.num_bytes / 1e6, found.num_layout_bytes / 1e6
    return (
        f"| {model} | {name} | {found.num_launches} | {megabytes:.1f} | {found.num_bytes / base.num_bytes:.2f} "
        f"| {found.num_layout_launches} | {layout_megabytes:.1f} | {found.num_all_launches} |"
    )


if __name__ == "__main__":
    main()
