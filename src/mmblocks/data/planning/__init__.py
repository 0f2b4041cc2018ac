"""From file headers to packed, balanced steps: what the samples of a mixture hold, and who computes which of them when.

`measure` reads lengths, `packing` fills rows, `steps` groups rows into optimizer steps, `balance` deals these to ranks.
"""
