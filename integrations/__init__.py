"""The judge, the problems and the grading in other stacks: a thin adapter for each, which imports its host lazily.

grading.py is what all of them share: an answer in, a verdict and its reward out, and NoVerdict where there is none.
"""
