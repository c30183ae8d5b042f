"""The training loop: seeded, resumable with the same loss curve, the best weights kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.metrics import Scores, classification_scores
from emolake.pipeline.learning.batches import Batch, augmented_batches, plain_batches
from emolake.pipeline.learning.examples import Examples
from emolake.pipeline.learning.parallel import Team
from emolake.pipeline.models.precision import Precision

Tensors = tuple[Tensor, ...] | list[Tensor]
_SCORED_TOGETHER = 256


class StageConfig(BaseModel):
    """One pass of training. `stem` trains the convolutional stem as a plain classifier; `model`
    trains the whole model to answer, from the stem the stage before left. batch_size: of a step, over
    all processes; each goes through its share in `accumulate` parts. gradient_checkpointing: activations
    are computed again on the way back, which saves memory and costs a third more time. size: side of the
    crops that a stem is shown, for a quicker start (default: the model's). class_balance: how far a class'
    loss is weighted by its rarity; oversample: how far its examples are shown more often. mixup: of
    Beta(mixup, mixup); 0: none. warmup_steps: by default a tenth of the stage's, at most 200. precision: by
    default bfloat16 where the device multiplies in it, else float32."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    trains: Literal["stem", "model"]
    epochs: int = Field(gt=0)
    batch_size: int = Field(128, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    stem_learning_rate_factor: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int | None = Field(None, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    class_balance: float = Field(0.0, ge=0, le=1)
    oversample: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0)
    size: int | None = Field(None, ge=16)
    frames: tuple[int, ...] = (1,)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    gradient_clip: float = Field(1.0, gt=0)
    precision: Precision | None = None
    checkpoint_steps: int = Field(200, gt=0)
    accumulate: int = Field(1, ge=1)
    gradient_checkpointing: bool = False


class Trainable(Protocol):
    """What the loop trains: a module whose forward gives losses, and that scores clips over the label
    set."""

    size: int

    def forward(self, batch: Batch, weights: Tensor, smoothing: float) -> Tensor:
        """(B,) loss of each example; weights (L,) per class."""
        ...

    def log_scores(self, batch: Batch) -> Tensor:
        """(B, L) log-probabilities, normalised over the label set."""
        ...


def train_stage(
    module: nn.Module,
    train: Examples,
    valid: Examples,
    stage: StageConfig,
    *,
    seed: int,
    folder: Path,
    team: Team,
    log: Callable[[str], None],
    report: Callable[[dict[str, float]], None] = lambda _: None,
    tensorboard: bool = False,
) -> Scores:
    """Trains `module` (a Trainable) in place and leaves it with the averaged weights of the best sum of
    validation accuracy and UAR: either alone is won by an epoch that gave the other away.

    Data order, frame count and augmentation of a step follow from (seed, step) alone, and the
    checkpoint holds weights, average, optimizer and step, so a killed run goes on as if it had not
    been. Writes `folder`/<stage>-{checkpoint.pt,best.safetensors,metrics.jsonl}; report: what is
    measured after each epoch, in every process of the team.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}-checkpoint.pt"
    best_file = folder / f"{stage.name}-best.safetensors"
    if min(stage.batch_size, len(train)) < team.size:
        raise UserError(
            f"stage {stage.name}: a step of {min(stage.batch_size, len(train))} examples is too small for "
            f"{team.size} workers; each needs one"
        )
    device = team.device
    module.to(device)
    frozen = _set_frozen(module, stage)
    average = AveragedModel(module, multi_avg_fn=_moving_average(stage.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(
        _parameter_groups(module, stage), lr=stage.learning_rate, weight_decay=stage.weight_decay
    )
    per_epoch = max(len(train) // stage.batch_size, 1)
    total = per_epoch * stage.epochs
    warmup = min(200, total // 10) if stage.warmup_steps is None else stage.warmup_steps
    step, best = 0, -1.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, best = state["step"], state["best"]
        log(f"{stage.name}: resuming at step {step} of {total}")
    team.wait()
    metrics = MetricsLog(folder, stage.name, step, tensorboard) if team.leads else None
    weights = _class_weights(train, stage).to(device)
    joined = team.joined(module)
    started = time.monotonic()
    while step < total:
        rate = stage.learning_rate * _schedule(step, total, warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        module.train()
        for part in frozen:
            part.eval()
        rows = _batch_rows(train, stage, seed, step, per_epoch)
        own = seed * 1_000_003 + step + team.rank * 15_485_863
        generator = torch.Generator().manual_seed(own)
        torch.manual_seed(own)  # dropout draws from the global generator
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(joined, train, rows, stage, weights, generator, team)
        nn.utils.clip_grad_norm_(module.parameters(), stage.gradient_clip)
        optimizer.step()
        average.update_parameters(module)
        step += 1
        record: dict[str, float | int] = {"step": step, "loss": loss, "lr": rate}
        epoch_ends = step % per_epoch == 0 or step == total
        if epoch_ends:
            team.alike(average)
            measured = _measured(average.module, valid, team, stage.precision)
            record |= {"war": measured.war, "uar": measured.uar}
            elapsed = time.monotonic() - started
            log(
                f"{stage.name}: epoch {step // per_epoch}/{stage.epochs}, loss {loss:.3f}, "
                f"war {measured.war:.4f}, uar {measured.uar:.4f}, {elapsed:.0f} s"
            )
            if measured.war + measured.uar > best:
                best = measured.war + measured.uar
                if team.leads:
                    _save(average.module, best_file)
        if metrics is not None:
            metrics.write(record)
            if epoch_ends or step % stage.checkpoint_steps == 0:
                _save_checkpoint(checkpoint, module, average, optimizer, step, best)
        if epoch_ends:
            report({"step": step, "loss": loss, "war": measured.war, "uar": measured.uar})
    team.wait()
    module.load_state_dict(load_file(best_file, device=str(device)))
    return _measured(module, valid, team, stage.precision)


def _backward(
    joined: nn.Module,
    train: Examples,
    rows: NDArray[np.int64],
    stage: StageConfig,
    weights: Tensor,
    generator: torch.Generator,
    team: Team,
) -> float:
    """Gradients of the batch `rows`: this process' share of it, in `accumulate` parts. The loss of the
    share."""
    frames = stage.frames[int(torch.randint(len(stage.frames), (1,), generator=generator))]
    size = _trainable(joined).size
    share = train.select(np.array_split(rows, team.size)[team.rank])
    batches = [
        part
        for batch in augmented_batches(share, frames, size, generator, stage.mixup)
        for part in batch.parts(stage.accumulate)
    ]
    # The mean over the team's processes is taken as they join: each scales by what the whole has.
    scale = team.size / len(rows)
    loss = 0.0
    for k, batch in enumerate(batches):
        last = k == len(batches) - 1
        with ExitStack() as quiet:
            if isinstance(joined, DistributedDataParallel) and not last:
                quiet.enter_context(joined.no_sync())
            with _autocast(team.device, stage.precision):
                each = joined(batch.to(team.device), weights, stage.label_smoothing)
            part_loss = each.sum() * scale
            part_loss.backward()
        loss += float(part_loss.detach())
    return loss


def _class_weights(train: Examples, stage: StageConfig) -> Tensor:
    """(L,) by how rare a class is, to the power class_balance."""
    return torch.tensor(_rarity(train) ** stage.class_balance, dtype=torch.float32)


def _rarity(train: Examples) -> NDArray[np.float64]:
    """(L,) how many times as common the mean class is; by what people saw."""
    counts = train.shares.sum(0, dtype=np.float64)
    rarity: NDArray[np.float64] = counts.mean() / np.maximum(counts, 1)
    return rarity


@torch.no_grad()
def class_scores(
    module: nn.Module, examples: Examples, team: Team, precision: Precision | None
) -> NDArray[np.float64]:
    """(N, L) log-probabilities of the plain aligned view of each example, a share in each process."""
    module.eval()
    mine = np.arange(team.rank, len(examples), team.size)
    told: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for start in range(0, len(mine), _SCORED_TOGETHER):
        rows = mine[start : start + _SCORED_TOGETHER]
        for batch in plain_batches(examples.select(rows), _trainable(module).size):
            with _autocast(team.device, precision):
                scores = _trainable(module).log_scores(batch.to(team.device))
            told.append((rows[batch.rows], scores.float().cpu().double().numpy()))
    shares = [share for of_one in team.gathered(told) for share in of_one]
    out = np.empty((len(examples), shares[0][1].shape[1]))
    for rows, values in shares:
        out[rows] = values
    return out


def _measured(
    module: nn.Module, examples: Examples, team: Team, precision: Precision | None
) -> Scores:
    log_scores = class_scores(module, examples, team, precision)
    return classification_scores(np.exp(log_scores), examples.labels)


def _trainable(module: nn.Module) -> Trainable:
    plain = module.module if isinstance(module, DistributedDataParallel) else module
    return plain  # type: ignore[return-value]


def _parameter_groups(module: nn.Module, stage: StageConfig) -> list[dict[str, object]]:
    """Norms, biases and embeddings go without decay; the stem may learn more slowly."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = stage.stem_learning_rate_factor if ".stem." in f".{name}" else 1.0
            decays = parameter.ndim >= 2 and "embedding" not in name
            groups.setdefault((decays, factor), []).append(parameter)
    return [
        {"params": parameters, "factor": factor} | ({} if decays else {"weight_decay": 0.0})
        for (decays, factor), parameters in groups.items()
    ]


class MetricsLog:
    """What is measured step by step: JSONL, and TensorBoard's events where asked for."""

    def __init__(self, folder: Path, stage: str, step: int, tensorboard: bool) -> None:
        """Drops the records after `step`: of steps that a kill undid and that will be done again."""
        self._file = folder / f"{stage}-metrics.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self._file.write_text("".join(f"{line}\n" for line in kept))
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=step)

    def write(self, record: Mapping[str, float | int]) -> None:
        with self._file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        if self._events is not None:
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, int(record["step"]))
            self._events.flush()


def _save_checkpoint(
    path: Path,
    module: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    best: float,
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "best": best,
        },
        partial,
    )
    partial.replace(path)


def _set_frozen(module: nn.Module, stage: StageConfig) -> list[nn.Module]:
    """With a stem learning rate of zero the stem stands still, its batch statistics too."""
    stems = [part for name, part in module.named_modules() if name.split(".")[-1] == "stem"]
    for stem in stems:
        stem.requires_grad_(stage.stem_learning_rate_factor > 0)
    return stems if stage.stem_learning_rate_factor == 0 else []


def _batch_rows(
    train: Examples, stage: StageConfig, seed: int, step: int, per_epoch: int
) -> NDArray[np.int64]:
    epoch, position = divmod(step, per_epoch)
    draws = np.random.default_rng((seed, epoch))
    if stage.oversample:
        # Whoever has no label is as likely as the mean class' examples.
        chance = np.where(train.labels >= 0, _rarity(train)[train.labels], 1.0) ** stage.oversample
        order = draws.choice(len(train), len(train), p=chance / chance.sum())
    else:
        order = draws.permutation(len(train))
    return np.sort(order[position * stage.batch_size : (position + 1) * stage.batch_size])


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average whose memory grows from nothing, so early epochs count too."""

    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        keep = min(decay, (1 + float(updates)) / (10 + float(updates)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    return update


def _schedule(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def _autocast(device: torch.device, precision: Precision | None) -> AbstractContextManager[object]:
    wanted = _multiplies_in_bfloat16(device) if precision is None else precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def _multiplies_in_bfloat16(device: torch.device) -> bool:
    """A CPU that has to imitate it takes ten times as long to train as in float32."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _save(module: nn.Module, path: Path) -> None:
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, partial)
    partial.replace(path)
