"""How other graders decide: our own statement of their rules, over outputs that our sandbox produced."""
