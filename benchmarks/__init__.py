"""What the README's numbers come from, each one command."""
