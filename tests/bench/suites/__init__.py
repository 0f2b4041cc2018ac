"""Measured side by side with transformers' LlavaOnevision: counters, times and bytes, as rows of a table."""
