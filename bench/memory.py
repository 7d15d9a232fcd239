"""Bytes that a forward keeps for its backward, parameters and their casts left out.

python -m bench.memory          writes bench/results/memory.json
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

import kernels
from bench.peers import ExpertLoop

RESULTS = Path(__file__).parent / "results" / "memory.json"


def saved_bytes(run: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Counts each storage once."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in saved.values())


def main() -> None:
    tokens, hidden, ffn, num_experts, top_k = 4096, 384, 1536, 8, 2
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden, requires_grad=True)
    contenders: dict[str, nn.Module] = {
        "kernels.MoE": kernels.MoE(hidden, ffn, num_experts=num_experts, top_k=top_k),
        "loop over experts": ExpertLoop(hidden, ffn, num_experts, top_k),
    }
    sizes = {name: saved_bytes(lambda m=model: m(x), model.parameters()) for name, model in contenders.items()}
    result = {
        "case": f"T={tokens} H={hidden} F={ffn} E={num_experts} k={top_k} fp32",
        "saved_bytes": sizes,
        "ratio": round(sizes["kernels.MoE"] / sizes["loop over experts"], 3),
        "run": {"torch": torch.__version__},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
