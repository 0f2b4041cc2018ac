"""Sweeps: trials are composed and checked, run by a launcher of Hydra, and compared."""
