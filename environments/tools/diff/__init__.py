"""`atropos diff RUN_A RUN_B`: what two runs have differently, what they reached, and what a step of each costs."""
