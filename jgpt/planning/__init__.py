"""What a config will do on a TPU, found out without one: `python -m jgpt.plan`.

`topologies` and `chips` are tables; `step` compiles the real training step with the TPU compiler in
a process of its own; `hlo` and `counts` read the compiled program; `estimate` turns counts into
seconds; `search` tries meshes; `report` shows the result.
"""
