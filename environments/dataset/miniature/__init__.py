"""Eighty problems of our own in the forms of three sources: a recipe that builds in seconds, without a network.

level1.yaml to level5.yaml hold statements, solutions and inputs; `python -m environments.dataset.miniature.make` turns
them into files/, which is what the recipe `miniature` reads.
"""
