"""Compiles steps for two slices of four TPU v5e, without the hardware: `python compile_for_tpu.py STEP`."""

import sys

from compiled import MESH, step_text
from jax.experimental import topologies

from gnp_scale.config import GnpConfig
from gnp_scale.mesh import make_mesh

STEPS = {"plain": GnpConfig(alpha=0.0), "one group": GnpConfig(), "two groups": GnpConfig(perturb_groups=2)}


def main(name: str) -> None:
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)
    mesh = make_mesh(MESH, topology.devices)
    assert [{device.slice_index for device in replica.flat} for replica in mesh.devices] == [{0}, {1}]
    print(step_text(STEPS[name], mesh))


if __name__ == "__main__":
    main(sys.argv[1])
