"""The networks: plain pytrees of parameters, each with its sharding stated beside it; `registry.py` lists them."""
