"""What the compilers read from the environment; this file imports nothing, because JAX reads it when it is imported."""

_TPUS = {"v5e": "v5e-4", "v5p": "v5p-8", "v6e": "v6e-4"}
"""A value of TPU_ACCELERATOR_TYPE with which the compiler starts without a TPU, by chip."""


def environment(topology: str) -> dict[str, str]:
    """The variables with which a process compiles for `topology`, such as "v5e:16x16", without accelerators."""
    variables, accelerator = {"JAX_PLATFORMS": "cpu"}, _TPUS.get(topology.partition(":")[0])
    if accelerator is not None:
        variables |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    return variables
