"""Adapters on a frozen or quantized backbone."""
