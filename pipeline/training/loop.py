"""The training loop: seeded, resumable with the same loss curve, the best weights kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.training.augment import Clips, augmented_clips, plain_clips
from pipeline.training.faces import LabelledFaces
from pipeline.training.metrics import Scores, classification_scores

Tensors = tuple[Tensor, ...] | list[Tensor]


class StageConfig(BaseModel):
    """One pass of training. `stem` trains the convolutional stem as a plain classifier; `model`
    trains the whole model to answer, from the stem the stage before left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    trains: Literal["stem", "model"]
    epochs: int = Field(gt=0)
    batch_size: int = Field(128, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    stem_learning_rate_factor: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(200, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    class_balance: float = Field(0.0, ge=0, le=1)
    frames: tuple[int, ...] = (1,)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    gradient_clip: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    checkpoint_steps: int = Field(200, gt=0)


class Trainable(Protocol):
    """What the loop trains: a module that scores clips over the label set."""

    size: int

    def log_scores(self, clips: Clips, features: Tensor) -> Tensor:
        """(B, L) log-probabilities, normalised over the label set."""
        ...

    def loss(
        self, clips: Clips, features: Tensor, target: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        """Scalar; target (B,) label indices, weights (L,) per class."""
        ...


def train_stage(
    module: nn.Module,
    train: LabelledFaces,
    valid: LabelledFaces,
    stage: StageConfig,
    *,
    seed: int,
    folder: Path,
    device: torch.device,
    log: Callable[[str], None],
) -> Scores:
    """Trains `module` (a Trainable) in place and leaves it with the averaged weights of best validation UAR.

    Data order, frame count and augmentation of a step follow from (seed, step) alone, and the
    checkpoint holds weights, average, optimizer and step, so a killed run goes on as if it had not
    been. Writes `folder`/<stage>-{checkpoint.pt,best.safetensors,metrics.jsonl}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}-checkpoint.pt"
    best_file = folder / f"{stage.name}-best.safetensors"
    metrics_file = folder / f"{stage.name}-metrics.jsonl"
    module.to(device)
    frozen = _set_frozen(module, stage)
    average = AveragedModel(module, multi_avg_fn=_moving_average(stage.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(
        _parameter_groups(module, stage), lr=stage.learning_rate, weight_decay=stage.weight_decay
    )
    per_epoch = len(train) // stage.batch_size
    total = per_epoch * stage.epochs
    step, best = 0, -1.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, best = state["step"], state["best"]
        _forget_after(metrics_file, step)
        log(f"{stage.name}: resuming at step {step} of {total}")
    counts = np.bincount(train.labels, minlength=int(train.labels.max()) + 1)
    weights = torch.tensor(
        (counts.mean() / np.maximum(counts, 1)) ** stage.class_balance, dtype=torch.float32
    ).to(device)
    started = time.monotonic()
    while step < total:
        batch = _batch_rows(train, stage, seed, step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)  # dropout draws from the global generator
        frames = stage.frames[int(torch.randint(len(stage.frames), (1,), generator=generator))]
        clips = augmented_clips(
            _canvas(train, batch),
            torch.from_numpy(train.landmarks[batch]),
            frames,
            _trainable(module).size,
            generator,
        )
        features = torch.from_numpy(train.features[batch])
        target = torch.from_numpy(train.labels[batch]).to(device)
        rate = stage.learning_rate * _schedule(step, total, stage.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        module.train()
        for part in frozen:
            part.eval()
        with _autocast(device, stage.precision):
            loss = _trainable(module).loss(
                _to(clips, device), features.to(device), target, weights, stage.label_smoothing
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), stage.gradient_clip)
        optimizer.step()
        average.update_parameters(module)
        step += 1
        record: dict[str, float | int] = {"step": step, "loss": float(loss.detach()), "lr": rate}
        if step % per_epoch == 0 or step == total:
            measured = _measured(average.module, valid, device, stage.precision)
            record |= {"war": measured.war, "uar": measured.uar}
            elapsed = time.monotonic() - started
            log(
                f"{stage.name}: epoch {step // per_epoch}/{stage.epochs}, loss {loss:.3f}, "
                f"war {measured.war:.4f}, uar {measured.uar:.4f}, {elapsed:.0f} s"
            )
            if measured.uar > best:
                best = measured.uar
                _save(average.module, best_file)
        with metrics_file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        if step % stage.checkpoint_steps == 0 or step == total or step % per_epoch == 0:
            partial = checkpoint.with_suffix(".partial")
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
            partial.replace(checkpoint)
    module.load_state_dict(load_file(best_file, device=str(device)))
    return _measured(module, valid, device, stage.precision)


@torch.no_grad()
def class_scores(
    module: nn.Module, faces: LabelledFaces, device: torch.device, precision: str
) -> NDArray[np.float64]:
    """(N, L) log-probabilities of the plain aligned view of each face."""
    module.eval()
    rows = []
    for start in range(0, len(faces), 256):
        batch = np.arange(start, min(start + 256, len(faces)))
        clips = plain_clips(
            _canvas(faces, batch), torch.from_numpy(faces.landmarks[batch]), _trainable(module).size
        )
        features = torch.from_numpy(faces.features[batch]).to(device)
        with _autocast(device, precision):
            rows.append(_trainable(module).log_scores(_to(clips, device), features).float().cpu())
    return torch.cat(rows).double().numpy()


def _measured(
    module: nn.Module, faces: LabelledFaces, device: torch.device, precision: str
) -> Scores:
    log_scores = class_scores(module, faces, device, precision)
    return classification_scores(np.exp(log_scores), faces.labels)


def _trainable(module: nn.Module) -> Trainable:
    return module  # type: ignore[return-value]


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


def _forget_after(metrics_file: Path, step: int) -> None:
    """Drops the records of steps that a kill undid and that will be done again."""
    lines = metrics_file.read_text().splitlines() if metrics_file.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    metrics_file.write_text("".join(f"{line}\n" for line in kept))


def _set_frozen(module: nn.Module, stage: StageConfig) -> list[nn.Module]:
    """With a stem learning rate of zero the stem stands still, its batch statistics too."""
    stems = [part for name, part in module.named_modules() if name.split(".")[-1] == "stem"]
    for stem in stems:
        stem.requires_grad_(stage.stem_learning_rate_factor > 0)
    return stems if stage.stem_learning_rate_factor == 0 else []


def _batch_rows(
    faces: LabelledFaces, stage: StageConfig, seed: int, step: int, per_epoch: int
) -> NDArray[np.int64]:
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(len(faces))
    return np.sort(order[position * stage.batch_size : (position + 1) * stage.batch_size])


def _canvas(faces: LabelledFaces, rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(faces.canvas[rows]).permute(0, 3, 1, 2)


def _to(clips: Clips, device: torch.device) -> Clips:
    return Clips(clips.pixels.to(device), clips.landmarks.to(device))


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


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _save(module: nn.Module, path: Path) -> None:
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, partial)
    partial.replace(path)
