"""The networks: plain pytrees of parameters, each with an explicit sharding. `registry.py` lists the networks."""
