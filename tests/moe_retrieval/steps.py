"""Three steps of training on token ids, by any number of processes: what the exactness tests compare."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from moe_retrieval.training import optimizer as optimizers
from moe_retrieval.training.distributed import World, parallelize, running_world
from moe_retrieval.training.losses import Objective
from moe_retrieval.training.step import Batch, Step
from moe_retrieval.training.targets import Targets
from tests.moe_retrieval.tiny import tiny_retriever, token_lists

ALONE = World(0, 1, torch.device("cpu"))

SIZES = (12, 6, 3)
"""Queries in each step: the last leaves a rank of four without any."""


def relative_error(out, reference):
    return ((out - reference).norm() / reference.norm().clamp(min=1e-30)).item()


def global_batch(step, size, negatives):
    """-> per query: its tokens, its documents' tokens, their keys, the keys of what answers it. Some keys repeat."""
    queries = token_lists(size, 9, seed=100 + step)
    documents = [token_lists(size, 20, seed=200 + 10 * step + column) for column in range(1 + negatives)]
    generator = torch.Generator().manual_seed(step)
    keys = torch.randint(0, 3 * size, (size, 1 + negatives), generator=generator)
    relevant = torch.cat([keys[:, :1], torch.randint(0, 3 * size, (size, 2), generator=generator)], 1)
    return queries, documents, keys, relevant


def make_batch(world, step, size, negatives):
    queries, documents, keys, relevant = global_batch(step, size, negatives)
    own = slice(world.rank, None, world.size)
    columns = [tokens for column in documents for tokens in column[own]]
    return Batch(queries[own], columns, Targets(keys[own], relevant[own], world.share(size)))


def run(world, variant, dtype="float64", loss="infonce", negatives=2, chunk_size=0, accumulate=1, adam=True, **options):
    """-> the parameters after the three steps, and the losses"""
    retriever = tiny_retriever(variant, noise=False).to(getattr(torch, dtype)).train()
    for layer in retriever.modules():
        if hasattr(layer, "balance_coef"):
            layer.balance_coef, layer.z_coef, layer.importance_coef = 0.3, 0.02, 0.1
    model = parallelize(retriever, world)
    if adam:
        optimizer = optimizers.make_optimizer(retriever, 1e-4, 1e-3, 0.01)
    else:
        optimizer = torch.optim.SGD(retriever.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    objective = Objective(loss, temperature=0.2, margin=0.3)
    take = Step(
        model, retriever, objective, optimizer, scaler, world.device, chunk_size=chunk_size, clip=1.0, **options
    )
    outcomes = []
    for step, size in enumerate(SIZES):
        batches = [make_batch(world, 7 * step + part, size, negatives) for part in range(accumulate)]
        outcome = take(batches)
        outcomes.append(torch.stack([outcome.loss.double(), outcome.aux.double(), outcome.gradient_norm.double()]))
    return dict(retriever.state_dict()), torch.stack(outcomes)


def start(size, *arguments):
    """`python arguments` on `size` processes that find each other; one alone is told nothing of others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in range(size):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        if size > 1:
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        command = [sys.executable, *map(str, arguments)]
        out = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, text=True))
    return processes


def finish(processes, status=0, timeout=300):
    """-> what they said; raises if one does not end with this status"""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == status for process in processes), "\n".join(outputs)
    return outputs


def run_on(size, cases, folder):
    """The cases on `size` processes -> for each the parameters of every rank and the mean of the losses."""
    (folder / "cases.json").write_text(json.dumps(cases))
    finish(start(size, "-m", "tests.moe_retrieval.steps", folder))
    results = []
    for number in range(len(cases)):
        states = [load_file(folder / f"{number}-{rank}.safetensors") for rank in range(size)]
        results.append((states, torch.stack([state.pop("outcomes") for state in states])))
    return results


def main(folder):
    cases = json.loads((folder / "cases.json").read_text())
    with running_world() as world:
        for number, case in enumerate(cases):
            state, outcomes = run(world, **case)
            save_file(state | {"outcomes": outcomes}, folder / f"{number}-{world.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
