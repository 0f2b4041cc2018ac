"""What a model costs: the one place that counts parameters, FLOPs and bytes, and that knows the rates of devices.

`counter` asks torch what a run on the meta device computes, `flops` turns that into costs per unit of work and counts the
passes of training, `activations` counts what is kept for backward, `state` what stays from step to step, and `devices` has
the rates of accelerators. `plan`, the data planner, the profiler and the benchmarks call these.
"""
