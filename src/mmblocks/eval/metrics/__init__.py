"""Scorers of benchmarks: pure functions on answers, one file per family, named by the code whose numbers they give.

`None` instead of a score or a letter: no answer can be read. It counts as 0, and reports say how many there are.
"""
