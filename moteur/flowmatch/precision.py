"""Where float64 arithmetic can run."""

import torch


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU for a backend that has no float64 (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device
