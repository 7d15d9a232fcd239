"""What a run takes: seconds, over all of its sessions, and the most memory of any."""

import sys
import time
from pathlib import Path

import torch

from moe_retrieval.training.checkpoint import Progress

STATUS = Path("/proc/self/status")


class Cost:
    """Of one session, which begins where the progress is.

    Of a run that an older version began, nobody knows how long it took: the rest of it would pass for the whole.
    """

    def __init__(self, progress: Progress, device: torch.device):
        self.device, self.before, self.began = device, progress.seconds, time.monotonic()
        self.is_known = progress.step == 0 or progress.seconds > 0

    def note(self, progress: Progress) -> None:
        """Into what the next checkpoint keeps: steps that are lost are not counted."""
        if self.is_known:
            progress.seconds = round(self.before + time.monotonic() - self.began, 3)
        progress.peak_memory = max(progress.peak_memory, peak_memory(self.device))


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU, what tensors took there; else what this process had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():  # on Linux, getrusage would count the peak of the program that started this one
        lines = STATUS.read_text().splitlines()
        return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
