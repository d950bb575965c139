"""Processes that die: the rest goes on, and the journals prove that nothing was lost or trained twice."""
