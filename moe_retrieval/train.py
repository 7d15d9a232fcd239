"""Trains a retriever: `python -m moe_retrieval.train`, or `torchrun -m moe_retrieval.train` for several processes."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import kernels
from moe_retrieval import checkpoint, distributed, export, optimizer, rng
from moe_retrieval import config as configs
from moe_retrieval.card import model_card
from moe_retrieval.checkpoint import Progress, Trained
from moe_retrieval.config import PRESETS, TrainConfig
from moe_retrieval.distributed import World, running_world
from moe_retrieval.errors import InputError
from moe_retrieval.feed import Feed
from moe_retrieval.losses import Objective
from moe_retrieval.preparation import find_resumption, load_collection, make_model, make_pairs
from moe_retrieval.step import Step
from moe_retrieval.validation import Validator, split_off
from moe_retrieval.watch import GateWatch, LossWatch

STEPS = 100
"""Of a run that is told neither epochs nor steps: minutes on two cores."""

EXPERT_LR = 10
"""Times the backbone's: new parameters start from nothing."""

LOOK_EVERY = 20
"""Steps between looks at the gate."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains as the config says; -> the metrics of the best model (empty with `no_eval`)."""
    config.check()
    if config.backend not in ("auto", *kernels.available_backends()):
        usable = ", ".join(("auto", *kernels.available_backends()))
        raise InputError(f"--backend {config.backend} is not available here; expected one of {usable}")
    with running_world() as world, kernels.use_backend(config.backend):
        return _train(config, world)


def _train(config: TrainConfig, world: World) -> dict[str, Any]:
    output = Path(config.output_dir)
    resumed = find_resumption(config, world)
    collection = load_collection(config, world)
    rng.seed(config.seed, rank=0)  # every rank makes the same new parameters
    retriever, tokenizer, backbone = make_model(config, collection, world, resumed)
    retriever.to(world.device).train()
    pairs = make_pairs(config, collection, world)
    split, queries, rows = split_off(collection, pairs)
    feed = Feed(pairs, rows, tokenizer, retriever.settings, world, config.batch_size, config.seed)
    validator = Validator(collection, split, queries, tokenizer, retriever) if queries else None
    total = count_steps(config, feed.batches_an_epoch)

    expert_lr = EXPERT_LR * config.lr if config.expert_lr is None else config.expert_lr
    adam = optimizer.make_optimizer(retriever, config.lr, expert_lr, config.weight_decay)
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    trained = Trained(retriever, adam, scaler)
    model = distributed.parallelize(retriever, world)
    objective = Objective(config.loss, config.temperature, config.margin)
    take_step = Step(
        model, retriever, objective, adam, scaler, world.device, config.precision, config.clip, config.chunk_size
    )

    progress = Progress()
    rng.seed(config.seed, world.rank)
    if resumed is not None:
        progress, same_world = checkpoint.restore(resumed, world, trained)
        if not same_world and world.is_main:
            say("warning: the checkpoint is from another number of processes: dropout and noise draw anew")
    if world.is_main:
        output.mkdir(parents=True, exist_ok=True)
        configs.save(config, output / "config.yaml")
        say(describe(config, world, collection, feed, retriever, validator, total, expert_lr, backbone, resumed))
    history = History(output / "log.jsonl", progress.step, world)

    def validate() -> None:
        """Measures, and keeps the model if it is the best so far; the newest, where there is nothing to measure on."""
        score = None
        if validator is not None:
            score = distributed.share_number(validator.score(retriever, world, config.precision))
        if score is None or progress.best_score is None or score > progress.best_score:
            progress.best_score, progress.best_step, progress.evaluations_since_best = score, progress.step, 0
            if world.is_main:
                card = model_card(retriever, backbone, collection.name, _facts(config, progress))
                export.save(output, retriever, tokenizer, card)
        else:
            progress.evaluations_since_best += 1
        progress.stopped_early = 0 < config.patience <= progress.evaluations_since_best
        if score is not None:
            history.write(step=progress.step, ndcg_at_10=score)
            history.say(f"step {progress.step}: NDCG@10 {score:.4f} on {split} (best {progress.best_score:.4f})")

    if progress.step == 0:
        validate()
    gate, losses = GateWatch(retriever), LossWatch()
    warmup = round(config.warmup * total)
    history.start_bar(total, progress.step)
    while progress.step < total and not progress.stopped_early:
        step = progress.step
        optimizer.set_lr(adam, optimizer.lr_factor(step, total, warmup, config.schedule))
        first = step * config.grad_accum
        batches = [feed.batch(first + part) for part in range(config.grad_accum)]
        looks = world.is_main and step % LOOK_EVERY == LOOK_EVERY - 1
        with gate.looking(retriever) if looks else nullcontext():
            outcome = take_step(batches)
        progress.step += 1

        loss, aux, norm = means((outcome.loss, outcome.aux, outcome.gradient_norm), world)
        history.write(step=progress.step, loss=loss, aux=aux, gradient_norm=norm)
        history.advance(loss)
        # fp16 lowers its scale until gradients fit: skipped steps are its way of working
        if warning := losses.warning(progress.step, loss, 0.0 if scaler.is_enabled() else norm):
            history.warn(warning)
        if looks and step > warmup:
            for warning in gate.warnings(experts_had_time=step > total // 2):
                history.warn(warning)

        is_last = progress.step == total
        if is_last or (config.eval_every and progress.step % config.eval_every == 0):
            validate()
        if is_last or progress.stopped_early or (config.save_every and progress.step % config.save_every == 0):
            checkpoint.save(output / "checkpoints", world, trained, progress, asdict(config))
    history.close()
    if world.is_main:
        shares = "; ".join(f"{name}: {share}" for name, share in gate.shares().items())
        say(
            f"the best model is that of step {progress.best_step}, in {output}"
            + (f"\nexperts  {shares}" if shares else "")
        )
    if config.no_eval:
        return {}
    from moe_retrieval.summary import summarize

    return summarize(config, world, collection, backbone, _facts(config, progress))


def count_steps(config: TrainConfig, batches_an_epoch: int) -> int:
    """The steps of the epochs, at most `max_steps`; `STEPS` where neither is given."""
    limits = [config.max_steps] if config.max_steps else []
    if config.epochs:
        limits.append(-(-config.epochs * batches_an_epoch // config.grad_accum))
    return min(limits, default=STEPS)


def means(values: tuple[Tensor, ...], world: World) -> list[float]:
    """Of all ranks, in one exchange."""
    stacked = torch.stack([value.detach().double().to(world.device) for value in values])
    if world.size > 1:
        torch.distributed.all_reduce(stacked)
    return (stacked / world.size).tolist()


# What a run says.


def say(text: str) -> None:
    tqdm.write(text)


def describe(config, world, collection, feed, retriever, validator, total, expert_lr, backbone, resumed) -> str:
    settings = retriever.settings
    all_parameters, active = retriever.count_parameters()
    hard = feed.pairs.num_negatives
    compared = {
        "infonce": f"{config.batch_size * (1 + hard) - 1} negatives a query, {hard} of them its own hard ones",
        "triplet": f"against {hard} hard negatives a query" if hard else "against the worst document of the batch",
        "contrastive": f"{1 + hard} labelled documents a query",
    }
    experts = settings.experts
    lines = {
        "data": f"{collection.name}: {len(collection.documents):,} documents, {len(feed.rows):,} training pairs, "
        f"fingerprint {collection.fingerprint}",
        "model": f"{config.variant} from {backbone}: {all_parameters:,} parameters, {active:,} active",
        "processes": f"{world.size} on {world.device.type}, {config.precision}, "
        f"backend {config.backend} of {', '.join(kernels.available_backends())}",
        "batch": f"{config.batch_size} queries, {compared[config.loss]}"
        + (f"; {config.grad_accum} batches a step" if config.grad_accum > 1 else ""),
        "masks": "documents that are the positive, or judged relevant, count as no negatives",
        "router": "none" if experts is None or settings.variant not in ("sb-moe", "moe")
        else f"balance loss x {experts.balance_coef}, z-loss x {experts.z_coef}",
        "steps": f"{total} ({total / feed.batches_an_epoch * config.grad_accum:.1f} epochs), "
        f"lr {config.lr:g}, of the experts {expert_lr:g}",
        "validation": f"{len(validator.queries)} queries, {len(validator.documents)} documents" if validator
        else "none: too few queries; the last step counts as the best",
    }  # fmt: skip
    if resumed is not None:
        lines["resumed"] = str(resumed)
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _facts(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    """For the model card."""
    names = ("variant", "loss", "temperature", "negatives", "batch_size", "lr", "precision", "seed")
    facts: dict[str, Any] = {name.replace("_", " "): getattr(config, name) for name in names}
    facts["step"] = progress.best_step
    if progress.best_score is not None:
        facts["validation NDCG@10"] = round(progress.best_score, 4)
    return facts


class History:
    """The log of a run: a line of JSON an event, a progress bar, warnings said once. Rank 0 alone has one."""

    def __init__(self, path: Path, step: int, world: World):
        self.main = world.is_main
        self.warned: set[str] = set()
        self.bar: tqdm | None = None
        if self.main:
            before = path.read_text().splitlines() if path.is_file() and step else []
            whole = [line for line in before if line.endswith("}")]
            kept = [line for line in whole if json.loads(line)["step"] <= step]  # the others will be written again
            export.write(path, "".join(line + "\n" for line in kept).encode())
            self.file = path.open("a", encoding="utf-8")

    def start_bar(self, total: int, step: int) -> None:
        if self.main:
            self.bar = tqdm(total=total, initial=step, desc="training", unit="step", disable=None)

    def advance(self, loss: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update()

    def write(self, **event: Any) -> None:
        if self.main:
            self.file.write(json.dumps({**event, "time": round(time.time(), 1)}) + "\n")
            self.file.flush()

    def say(self, text: str) -> None:
        if self.main:
            say(text)

    def warn(self, text: str) -> None:
        kind = text.partition(" take")[0].partition(" (")[0] if "instability" not in text else text
        if kind not in self.warned:
            self.warned.add(kind)
            self.say(f"warning: {text}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.main:
            self.file.close()


def main(arguments: Sequence[str]) -> None:
    train(configs.parse(TrainConfig, arguments, "python -m moe_retrieval.train", PRESETS))


if __name__ == "__main__":
    configs.run_command(main)
