"""Where a model runs and in which type: `auto` and names, as devices and types of torch."""

from collections.abc import Callable

import torch

from mmblocks.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"


def choose_device(name: str = AUTO) -> torch.device:
    """auto: the first CUDA device, else the CPU; or a name of torch, such as cpu, cuda:1 or mps.

    Raises `ConfigError` for a device that this machine does not have.
    """
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as cause:  # torch has one of its own for each kind
        reason = str(cause).partition("\n")[0]
        raise ConfigError(
            f"device={name!r} cannot be used here ({reason}); write auto, cpu, cuda, cuda:1 or mps."
        ) from cause
    if device.type == "meta":
        raise ConfigError("device='meta' holds no values; write auto, cpu, cuda, cuda:1 or mps.")
    return device


def choose_devices(names: str = AUTO) -> list[torch.device]:
    """One device as in `choose_device`, or several of CUDA with commas between them: cuda:0,cuda:1."""
    devices = [choose_device(name.strip()) for name in names.split(",")]
    if len(devices) > 1 and (len(set(devices)) < len(devices) or any(device.type != "cuda" for device in devices)):
        raise ConfigError(f"device={names!r}: several devices are different ones of CUDA, such as cuda:0,cuda:1.")
    return devices


def choose_dtype(name: str, device: torch.device, find_stored: Callable[[], torch.dtype]) -> torch.dtype:
    """auto: the type of the stored weights where the device computes it well, else float32; or float32, bfloat16, float16.

    find_stored: reads the stored type; it is called only where that decides. CPUs compute float32 best. CUDA devices before Ampere have no bfloat16 of their own.
    """
    if name == AUTO:
        if device.type != "cuda":
            return torch.float32
        stored = find_stored()
        return torch.float32 if stored == torch.bfloat16 and not torch.cuda.is_bf16_supported(False) else stored
    if name not in DTYPES:
        raise ConfigError(f"dtype={name!r} is not one of {AUTO}, {', '.join(DTYPES)}.")
    return DTYPES[name]
