"""Prints the tables of kernels.md: what each kernel has to compute and to move, and how long that takes at least.

python docs/roofline.py
"""

from typing import NamedTuple


class Device(NamedTuple):
    tensor_cores: float
    """bf16 FLOP/s"""
    cores: float
    """FLOP/s of fp32 products, without TF32"""
    memory: float
    """bytes/s"""


DEVICES = {"H200": Device(790e12, 67e12, 4.3e12), "A100": Device(312e12, 19.5e12, 2.0e12)}
"""Measured on an H200, but for its fp32 products, which are its data sheet's, as is all of an A100 (80 GB, SXM)."""


class Shape(NamedTuple):
    T: int
    E: int
    K: int
    H: int
    F: int
    gated: bool = False
    mlp: bool = False
    x: int = 2
    """Bytes of a number of x, y and their gradients."""
    router: int = 2
    """Bytes of a number of the router's weights."""


class Work(NamedTuple):
    kernel: str
    flops: float
    bytes: float
    wide: bool = False
    """Whether the products are in fp32."""

    def bounds(self, device: Device) -> dict[str, float]:
        """Seconds, by what takes them."""
        cores = {"fp32 products": device.cores} if self.wide else {"tensor cores": device.tensor_cores}
        by_cores = {name: self.flops / rate for name, rate in cores.items()}
        return {"memory": self.bytes / device.memory} | by_cores


def forward(shape: Shape, keep: bool) -> list[Work]:
    """Experts in bf16, fp32 for the router's state. A tensor counts once a kernel: what is read again comes from L2."""
    T, E, K, H, F, *_ = shape
    S, U = T * K, F * (1 + shape.gated)
    used = min(E, S)  # experts whose weights are read
    weights = E * H + (H * H // 2 if shape.mlp else 0)  # the router's
    x_TH, rows_SH = shape.x * T * H, (2 if K > 1 else shape.x) * S * H
    kernels = [
        Work("gate", 2 * T * weights, x_TH + shape.router * weights + 4 * T * E + 8 * S, shape.router == 4),
        Work("plan", 0, 8 * S),
        Work("up", 2 * S * H * U, x_TH + 2 * used * H * U + 2 * S * F + 2 * S * U * keep),
        Work("down", 2 * S * H * F, 2 * S * F + 2 * used * H * F + rows_SH),
    ]
    return kernels + [Work("combine", S * H, rows_SH + x_TH, wide=True)] * (K > 1)


def backward(shape: Shape) -> list[Work]:
    T, E, K, H, F, *_ = shape
    S, U = T * K, F * (1 + shape.gated)
    x_TH = shape.x * T * H
    return [
        Work("down_backward", 2 * S * H * F, x_TH + 2 * E * H * F + 4 * S * U + 2 * S * F),
        Work("down_weight_grad", 2 * S * H * F, x_TH + 2 * S * F + 2 * E * H * F),
        Work("up_weight_grad", 2 * S * H * U, x_TH + 2 * S * U + 2 * E * H * U),
        Work("up_backward", 2 * S * H * U, 2 * S * U + 2 * E * H * U + 2 * S * H),
        Work("choose_backward", 0, 4 * S * (F // 128) + 8 * T * E + 8 * S),
        Work("grad_x", 2 * T * E * H, 2 * S * H + 4 * T * E + x_TH, wide=True),
        Work("router_grad", 2 * T * E * H, x_TH + 4 * T * E, wide=True),
        Work("sum_parts", 0, 4 * 264 * E * H // max(1, H // 64)),
    ]


def microseconds(work: Work, device: str) -> float:
    return 1e6 * max(work.bounds(DEVICES[device]).values())


def table(title: str, kernels: list[Work]) -> None:
    print(f"\n{title}\n")
    print("| kernel | GFLOP | MB | " + " | ".join(f"µs {device}" for device in DEVICES) + " | bound by (H200) |")
    print("|---|--:|--:|" + "--:|" * len(DEVICES) + "---|")
    total = Work("**all**", sum(w.flops for w in kernels), sum(w.bytes for w in kernels))
    sums = {device: sum(microseconds(w, device) for w in kernels) for device in DEVICES}
    for work in kernels:
        times = " | ".join(f"{microseconds(work, device):.1f}" for device in DEVICES)
        bounds = work.bounds(DEVICES["H200"])
        bound = max(bounds, key=lambda name: bounds[name])
        print(f"| {work.kernel} | {work.flops / 1e9:.2f} | {work.bytes / 1e6:.2f} | {times} | {bound} |")
    print(
        f"| {total.kernel} | {total.flops / 1e9:.2f} | {total.bytes / 1e6:.2f} | "
        + " | ".join(f"{sums[device]:.1f}" for device in DEVICES)
        + " | |"
    )


PARTS = 4 * 132
"""Of the gradients of a norm's weight and bias, where rows are many: `heuristics.norm_span`."""


def norm(T: int, H: int) -> None:
    """The end of half a block as autocast has it, with dropout: x, the sum and the result in fp32, y in bf16.

    Bytes read + written for a number of a row: PyTorch has dropout (2 + 2, and 1 for the mask), the sum (6 + 4) and the
    norm (4 + 4); backward the norm (8 + 4), its parameters (8), a cast to y's type (4 + 2) and dropout (3 + 2).
    """
    print(f"\nThe end of half a block, T = {T:,}, H = {H}\n")
    print("| | launches | MB | " + " | ".join(f"µs {device}" for device in DEVICES) + " |")
    print("|---|--:|--:|" + "--:|" * len(DEVICES))
    for name, launches, size in (
        ("forward: a seed, residual_norm", "2", 10 * T * H + 8 * T),
        ("PyTorch's dropout, sum, norm", "3", 23 * T * H + 8 * T),
        ("backward: residual_norm_backward, sum_parts", "2", 16 * T * H + 8 * T + 2 * 8 * H * PARTS),
        ("PyTorch's of the norm, its parameters, a cast, dropout", "4 or more", 31 * T * H + 8 * T),
    ):
        times = " | ".join(f"{microseconds(Work(name, 0, size), device):.1f}" for device in DEVICES)
        print(f"| {name} | {launches} | {size / 1e6:.2f} | {times} |")


def saved(shape: Shape) -> None:
    """Activations kept for the backward, in MB: ours, and a loop over experts under autograd."""
    T, E, K, H, F, *_ = shape
    S, U = T * K, F * (1 + shape.gated)
    ours = 2 * T * H + 2 * S * U + 4 * T * E + 8 * S + 4 * S + 4 * (E + 1)
    eager = 2 * T * H + 2 * S * H + 2 * S * U + 2 * S * F + 2 * S * H + 2 * S * H + 4 * T * E + 12 * S
    print(f"| {shape.T} | {shape.H} | {shape.F} | {ours / 1e6:.1f} | {eager / 1e6:.1f} | {ours / eager:.0%} |")


if __name__ == "__main__":
    large, small = Shape(65536, 8, 2, 768, 3072), Shape(64, 8, 2, 768, 3072)
    pooled = Shape(64, 6, 1, 384, 192, mlp=True)
    table("Forward in training, T = 65,536, E = 8, K = 2, H = 768, F = 3072", forward(large, True))
    table("Backward of the same", backward(large))
    table("Inference, T = 64, the same layer", forward(small, False))
    table("Inference, SBMoE(384), T = 64, top-1 of 6", forward(pooled, False))
    norm(65536, 768)
    training = large._replace(x=4, router=4)
    table("Forward in training as autocast has it: x, y and the router in fp32", forward(training, True))
    table("Backward of the same, with their gradients", backward(training))
    print("\n| T | H | F | ours, MB | eager, MB | |\n|--:|--:|--:|--:|--:|--:|")
    for hidden, ffn in ((384, 1536), (768, 3072)):
        saved(Shape(65536, 8, 2, hidden, ffn))
