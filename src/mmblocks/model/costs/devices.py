"""Rates of devices: the one table that MFU, the data planner and the benchmarks read."""

import logging
from dataclasses import dataclass

import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """peak_flops: dense bfloat16 FLOPs per second of the data sheet. reached_flops, reached_bytes: what large matrix
    products, and copies (read and written bytes), were measured to reach; None where nobody measured.
    """

    peak_flops: float
    reached_flops: float | None = None
    reached_bytes: float | None = None


H200 = DeviceRates(989e12, reached_flops=790e12, reached_bytes=4.3e12)
DEVICES = {
    "GB200": DeviceRates(2500e12),
    "B200": DeviceRates(2250e12),
    "GH200": DeviceRates(989e12),
    "H200": H200,
    "H100 NVL": DeviceRates(835e12),
    "H100 PCIe": DeviceRates(756e12),
    "H100": DeviceRates(989e12),
    "A100": DeviceRates(312e12),
    "L40S": DeviceRates(362e12),
    "L4": DeviceRates(121e12),
    "A10G": DeviceRates(70e12),
    "A10": DeviceRates(125e12),
    "RTX 4090": DeviceRates(165e12),
    "RTX 3090": DeviceRates(71e12),
}
"""GPUs by a piece of the name that their driver gives; the first that fits. Peaks are from NVIDIA's data sheets."""


def find_gpu_rates(name: str) -> DeviceRates | None:
    """The rates of a GPU by the name that its driver gives; None for one that is not listed."""
    words = f" {name.replace('-', ' ')} "
    return next((rates for piece, rates in DEVICES.items() if f" {piece} " in words), None)


def find_device_rates(device: torch.device) -> DeviceRates | None:
    """The rates of a device; None for a CPU, whose peak no name tells and no short measurement bounds."""
    return find_gpu_rates(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def find_peak_flops(device: torch.device) -> float | None:
    """FLOPs per second that a device can do at most; None, logged, where that is not known."""
    rates = find_device_rates(device)
    if rates is None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type} device"
        log.info("no MFU: the peak of %s is not known; give it as StepProfiler(peak_flops=...).", name)
        return None
    return rates.peak_flops
