"""What a run says before its first step: what is trained, on what, and how."""

from pathlib import Path

import kernels
from moe_retrieval.config import TrainConfig
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.training.distributed import World
from moe_retrieval.training.feed import Feed
from moe_retrieval.training.mixture import Part
from moe_retrieval.training.preparation import Prepared
from moe_retrieval.training.validation import Validation, Validator


def describe(
    config: TrainConfig, world: World, model: Prepared, feed: Feed, validation: Validation, total: int,
    resumed: Path | None,
) -> str:  # fmt: skip
    """`total` is the number of steps, `resumed` the checkpoint that the run goes on from."""
    retriever, settings = model.retriever, model.retriever.settings
    all_parameters, active = retriever.count_parameters()
    hard = feed.num_negatives
    compared = {
        "infonce": f"{config.batch_size * (1 + hard) - 1} negatives a query, {hard} of them picked because they look "
        "like an answer",
        "triplet": f"against {hard} hard negatives a query" if hard else "against the worst document of the batch",
        "contrastive": f"{1 + hard} labelled documents a query",
    }
    experts = settings.experts
    lines = {
        "data": "\n".join(map(_part, feed.parts)),
        "model": f"{config.variant} from {model.backbone}"
        + (f" (revision {model.revision})" if model.revision else "")
        + f": {all_parameters:,} parameters, {active:,} active"
        + (f", {_learning(retriever):,} trained" if config.train == "experts" else ""),
        "processes": f"{world.size} on {world.device.type}, {config.precision}, "
        f"backend {config.backend} of {', '.join(kernels.available_backends())}",
        "batch": f"{config.batch_size} queries, {compared[config.loss]}"
        + (f"; {config.grad_accum} batches a step" if config.grad_accum > 1 else ""),
        "spared": "a document that is judged relevant to a query, or is its own, is never its negative",
        "router": "none" if experts is None or settings.variant not in ("sb-moe", "moe")
        else f"balance loss x {experts.balance_coef}, z-loss x {experts.z_coef}",
        "steps": f"{total} ({total / feed.batches_an_epoch * config.grad_accum:.1f} epochs), "
        f"lr {config.lr:g}, of the experts {config.peak_expert_lr:g}",
        "validation": "\n".join(_held_out(validator, len(feed.parts) > 1) for validator in validation.validators)
        or "none: too few queries; the last step counts as the best",
    }  # fmt: skip
    if resumed is not None:
        lines["resumed"] = str(resumed)
    return "\n".join(f"{name:<11}{text}".replace("\n", f"\n{'':11}") for name, text in lines.items())


def _learning(retriever: Retriever) -> int:
    return sum(parameter.numel() for parameter in retriever.parameters() if parameter.requires_grad)


def _part(part: Part) -> str:
    collection = part.pairs.collection
    times = "" if part.weight == 1 else f" x {part.weight:g} an epoch"
    return (
        f"{collection.name}: {len(collection.documents):,} documents, {len(part.rows):,} training pairs{times}, "
        f"content hash {collection.fingerprint}"
    )


def _held_out(validator: Validator, is_of_several: bool) -> str:
    of = f"{validator.name} {validator.split}: " if is_of_several else ""
    return f"{of}{len(validator.queries)} queries, {len(validator.documents)} documents"
