"""API server, vLLM, environment and trainer on one machine, started and stopped together: `atropos train`, the demo."""
