"""In which type a case computes."""

import random

import torch

from kernels import dispatch

TYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def draw_type(draw: random.Random, backend: str) -> torch.dtype:
    return draw.choice([each for each in TYPES if dispatch.get(backend).supports(torch.device("cpu"), each)])
