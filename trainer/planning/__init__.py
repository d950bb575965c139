"""What a step takes, before it is taken: operations, memory over its moments, shapes of models and kinds of GPU.

`trainer.budget` is the command, `fit` the check at the trainer's start.
"""
