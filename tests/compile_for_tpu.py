"""Compiles steps for two slices of four TPU v5e, without the hardware: `python compile_for_tpu.py FOLDER`."""

import sys
from pathlib import Path

from compiled import MESH, step_text
from jax.experimental import topologies

from gnp_scale.config import GnpConfig
from gnp_scale.mesh import make_mesh

STEPS = {"plain": GnpConfig(alpha=0.0), "one group": GnpConfig(), "two groups": GnpConfig(perturb_groups=2)}


def main(folder: Path) -> None:
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)
    mesh = make_mesh(MESH, topology.devices)
    assert [{device.slice_index for device in replica.flat} for replica in mesh.devices] == [{0}, {1}]
    for name, gnp in STEPS.items():
        (folder / name).write_text(step_text(gnp, mesh))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
