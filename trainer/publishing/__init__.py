"""New weights into running vLLM servers: the two publishers, and what they share. `trainer.weights` chooses one."""
