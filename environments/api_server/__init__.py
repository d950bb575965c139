"""The Atropos API server as this project starts it."""
