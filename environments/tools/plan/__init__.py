"""`atropos plan`: the loop of a recipe on a cluster, simulated event by event before the cluster is rented.

`recipe` reads the files, `rates` turns a cluster into seconds, `loop` is the simulation, `figures` what it counts,
`search` tries divisions of the GPUs, `command` prints.
"""
