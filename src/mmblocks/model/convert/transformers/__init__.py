"""Import and export of checkpoints in the layouts of transformers."""
