"""The networks: plain pytrees of parameters, each with its sharding stated beside it; `zoo.py` lists them."""
