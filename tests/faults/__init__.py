"""Processes that die: the rest continues, and the journals prove that nothing was lost or trained twice."""
