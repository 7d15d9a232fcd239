"""Training, from the first step to the table at the end."""

import math
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

import kernels
from moe_retrieval import config as configs
from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.files import check_space
from moe_retrieval.models import export
from moe_retrieval.models.card import model_card
from moe_retrieval.training import checkpoint, distributed, optimizer, rng
from moe_retrieval.training.ahead import Ahead
from moe_retrieval.training.checkpoint import Progress, Trained
from moe_retrieval.training.cost import Cost
from moe_retrieval.training.description import describe
from moe_retrieval.training.distributed import World, main_first, means, running_world, sole_use
from moe_retrieval.training.feed import Feed
from moe_retrieval.training.history import History
from moe_retrieval.training.interruption import Interruption
from moe_retrieval.training.losses import Objective
from moe_retrieval.training.pace import Pace
from moe_retrieval.training.preparation import load_collections, make_model, make_parts
from moe_retrieval.training.readings import Reading, Readings
from moe_retrieval.training.relocation import bring_along
from moe_retrieval.training.resumption import (
    check_same_data,
    check_total,
    checkpoints,
    describe_new_total,
    discard_checkpoints,
    find_resumption,
    settle_precision,
)
from moe_retrieval.training.scratch import keep_tokenizer
from moe_retrieval.training.step import Step
from moe_retrieval.training.summary import summarize
from moe_retrieval.training.validation import Validation, Validator
from moe_retrieval.training.watch import GateWatch, LossWatch, check_weights, diverged, skipped_to_the_end

STEPS = 100
"""Of a run that is told neither epochs nor steps: minutes on two cores."""

LOOK_EVERY = 20
"""Steps between looks at the gate."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains as the config says; -> the metrics of the best model (empty with `no_eval`)."""
    config.check()
    if config.backend not in ("auto", *kernels.available_backends()):
        usable = ", ".join(("auto", *kernels.available_backends()))
        raise InputError(f"--backend {config.backend} is not available here; expected one of {usable}")
    with (
        running_world() as world,
        kernels.use_backend(config.backend),
        sole_use(config.output_dir, world),
        ExitStack() as ends,
    ):
        return _train(settle_precision(config, world), world, ends)


def _train(config: TrainConfig, world: World, ends: ExitStack) -> dict[str, Any]:
    """`ends` is what must end with the steps, however they end."""
    output = Path(config.output_dir)
    resumed = find_resumption(config, world)
    collections = load_collections(config, world)
    trained_on = {collection.name: collection.fingerprint for collection in collections}
    if resumed is not None:
        with main_first(world):
            check_same_data(resumed, trained_on)
    rng.seed(config.seed, rank=0)  # every rank makes the same new parameters
    prepared = make_model(config, collections, world, resumed)
    retriever, tokenizer, backbone, revision = prepared
    retriever.to(world.device).train()
    retriever.encoder.gradient_checkpointing = config.gradient_checkpointing
    if config.train == "experts":
        retriever.train_added_alone()
    parts, held_out = make_parts(config, collections, world)
    feed = Feed(parts, tokenizer, retriever.settings.usage, world, config.batch_size, config.seed)
    validation = Validation([Validator(*held, tokenizer, retriever) for held in held_out])
    total = count_steps(config, feed.batches_an_epoch)
    steps_an_epoch = Fraction(feed.batches_an_epoch, config.grad_accum)
    eval_every, save_every = (config.interval(name, steps_an_epoch) for name in ("eval_every", "save_every"))
    if world.is_main:  # before the optimizer, with which torch imports its compiler: two seconds
        tqdm.write(describe(config, world, prepared, feed, validation, total, resumed))

    adam = optimizer.make_optimizer(retriever, config.lr, config.peak_expert_lr, config.weight_decay)
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    trained = Trained(retriever, adam, scaler)
    model = distributed.parallelize(retriever, world)
    objective = Objective(config.loss, config.temperature, config.margin)
    take_step = Step(
        model, retriever, objective, adam, scaler, world.device, config.precision, config.clip, config.chunk_size
    )

    with main_first(world):
        if world.is_main:
            kept = min(config.keep_checkpoints, 1 + int(total // save_every if save_every else 0))
            check_space(output, checkpoint.room(retriever, checkpoints(config), kept))
    if config.resume == "never":  # nothing that the user gave can be refused any more
        discard_checkpoints(config, world)
    if resumed is None:
        keep_tokenizer(config, world)
    progress = Progress()
    rng.seed(config.seed, world.rank)
    if resumed is not None:
        progress, same_world = checkpoint.restore(resumed, world, trained)
        with main_first(world):
            check_total(total, progress.step)
            bring_along(config, resumed, world)
        progress.stopped_early = is_patience_over(config, progress)
        if not same_world and world.is_main:
            tqdm.write("warning: the checkpoint is from another number of processes: dropout and noise draw anew")
    if world.is_main:
        configs.save(config, output / "config.yaml")
        if resumed is not None:
            had = {name: checkpoint.read_state(resumed)["config"][name] for name in ("max_steps", "epochs")}
            before = count_steps(replace(config, **had), feed.batches_an_epoch)
            if before != total:
                tqdm.write(describe_new_total(config, before, total, progress.step))
        if progress.stopped_early:
            tqdm.write(f"the run stopped early at step {progress.step}: with a higher --patience, or 0, it goes on")
    history = ends.enter_context(History(output / "log.jsonl", progress.step, world))
    interruption = ends.enter_context(Interruption())
    gate, losses = GateWatch(retriever), LossWatch(progress.broken)
    cost, pace = Cost(progress, world.device), Pace()
    readings, read_up_to = Readings(world), progress.step
    warmup = round(config.warmup * total)

    def broken_since() -> int:
        return read_up_to - max(0, progress.broken - 1)

    def end_early() -> NoReturn:
        history.say(f"saved at step {progress.step}; the same command goes on")
        raise KeyboardInterrupt

    def validate() -> None:
        """Measures, and keeps the model if none was better; the newest, where there is nothing to measure on."""
        score, best = None, progress.best_score
        check_weights(retriever, broken_since(), progress.best_step)
        if validation:
            score = validation.score(retriever, world, config.precision)
            if not math.isfinite(score):
                raise diverged("the embeddings are", broken_since(), progress.best_step)
        elif progress.broken:
            return
        is_better = score is None or best is None or score > best
        progress.evaluations_since_best = 0 if is_better else progress.evaluations_since_best + 1
        # of equal ones the later: the first may be the one with random weights
        if is_better or score == best or config.keep == "last":
            progress.best_score, progress.best_step = score, progress.step
            if world.is_main:
                card = model_card(retriever, backbone, ", ".join(trained_on), _facts(config, progress, revision))
                export.save(output, retriever, tokenizer, card)
        progress.stopped_early = is_patience_over(config, progress)
        if score is not None:
            each = validation.scores if len(collections) > 1 else {}
            history.write(step=progress.step, ndcg_at_10=score, **({"by_dataset": each} if each else {}))
            on = validation.told()
            best_so_far = "" if config.keep == "last" else f" (best {progress.best_score:.4f})"
            history.say(f"step {progress.step}: NDCG@10 {score:.4f} on {on}{best_so_far}")

    def note(reading: Reading, tokens_a_second: float) -> bool:
        """What a step computed, once it is known -> whether the run is to stop."""
        nonlocal read_up_to
        loss, aux, norm, stops = reading.values
        read_up_to = reading.step
        history.write(step=reading.step, loss=loss, aux=aux, gradient_norm=norm)
        rate = config.lr * optimizer.lr_factor(reading.step - 1, total, warmup, config.schedule)
        history.advance(reading.step, loss, rate, tokens_a_second)
        # fp16 lowers its scale until gradients fit: skipped steps are its way of working
        if finding := losses.warning(reading.step, loss, 0.0 if scaler.is_enabled() else norm):
            history.warn(finding)
        progress.broken = losses.broken
        if not math.isfinite(loss):
            check_weights(retriever, broken_since(), progress.best_step)
        return bool(stops)

    source: Feed | Ahead = feed
    if world.device.type == "cuda":  # on a CPU, what makes a batch is what would compute
        source = ends.enter_context(Ahead(feed, world.device, config.grad_accum))
    history.start_meter(total, progress.step)
    if progress.step == 0:
        validate()
    while progress.step < total and not progress.stopped_early:
        step, began = progress.step, time.perf_counter()
        optimizer.set_lr(adam, optimizer.lr_factor(step, total, warmup, config.schedule))
        first = step * config.grad_accum
        batches = [source.batch(first + part) for part in range(config.grad_accum)]
        is_time_to_look = step % LOOK_EVERY == LOOK_EVERY - 1
        looks = world.is_main and is_time_to_look
        with gate.looking(retriever) if looks else nullcontext():
            outcome = take_step(batches)
        progress.step += 1

        is_last = progress.step == total
        validates, saves = (is_last or is_due(progress.step, every) for every in (eval_every, save_every))
        wanted = torch.tensor(float(interruption.wanted))
        readings.add(progress.step, (outcome.loss, outcome.aux, outcome.gradient_norm, wanted))
        known = list(readings.read(everything=validates or saves or is_time_to_look))  # the same of every rank
        tokens_a_second = world.size * pace.after(batches, time.perf_counter() - began)
        if looks:
            history.note_experts(progress.step, gate.shares())
        told = [note(reading, tokens_a_second) for reading in known]
        stops = any(told)
        if stops:  # for which every rank has the same reason at the same step
            for reading in readings.read(everything=True):
                note(reading, tokens_a_second)
        if looks and gate.newest:
            history.write(step=progress.step, shares=gate.newest)
        if looks and step > warmup:
            for finding in gate.warnings(experts_had_time=step > total // 2):
                history.warn(finding)

        if validates:
            validate()
        if saves or progress.stopped_early or stops:
            check_weights(retriever, broken_since(), progress.best_step)
            cost.note(progress)
            kept = config.keep_checkpoints
            checkpoint.save(checkpoints(config), world, trained, progress, asdict(config), kept, trained_on)
        if stops:
            end_early()
    pressed = torch.tensor(float(interruption.wanted))  # in the last validation, or while it was saved
    if any(means((pressed,), world)):
        end_early()
    ends.close()
    if progress.broken:
        if not validation or progress.broken == progress.step:
            raise diverged("the losses or their gradients are", broken_since(), progress.best_step)
        history.warn(skipped_to_the_end(broken_since(), progress.best_step))
    history.say(f"the {config.keep} model is that of step {progress.best_step}, in {output}")
    if shares := "; ".join(f"{name}: {share}" for name, share in gate.shares().items()):
        history.say(f"experts  {shares}")
    facts = _facts(config, progress, revision)
    return {} if config.no_eval else summarize(config, world, collections, backbone, facts)


def is_due(step: int, every: Fraction) -> bool:
    """Whether a step is the first at or after a multiple of an interval, which need not be whole."""
    return bool(every) and step // every > (step - 1) // every


def is_patience_over(config: TrainConfig, progress: Progress) -> bool:
    return 0 < config.patience <= progress.evaluations_since_best


def count_steps(config: TrainConfig, batches_an_epoch: int) -> int:
    """The steps of the epochs, at most `max_steps`; `STEPS` where neither is given."""
    limits = [config.max_steps] if config.max_steps else []
    if config.epochs:
        limits.append(-(-config.epochs * batches_an_epoch // config.grad_accum))
    return min(limits, default=STEPS)


def _facts(config: TrainConfig, progress: Progress, revision: str | None) -> dict[str, Any]:
    """For the model card; `revision` is the backbone's, if it came from the hub."""
    names = ("variant", "loss", "temperature", "negatives", "batch_size", "lr", "precision", "seed")
    facts: dict[str, Any] = {name.replace("_", " "): getattr(config, name) for name in names}
    if revision is not None:
        facts["backbone revision"] = revision
    facts["step"] = progress.best_step
    if progress.best_score is not None:
        facts["validation NDCG@10"] = round(progress.best_score, 4)
    return facts
