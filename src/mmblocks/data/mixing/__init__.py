"""Sources of a stage put together: subsets, sampling weights, records that cannot be read."""
