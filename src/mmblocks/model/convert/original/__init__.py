"""Import and export of checkpoints in the layout of the original LLaVA code."""
