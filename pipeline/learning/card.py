"""The model card of a tuned model, filled from the run that made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emolake.pipeline.evaluation.metrics import Scores
from emolake.pipeline.learning.config import TuneConfig


def model_card(config: TuneConfig, scores: Scores, labels: tuple[str, ...], *, train: int) -> str:
    """Markdown: what the model is, what it was trained on and how, how well it does, its limits."""
    stages = "\n".join(
        f"- `{s.name}`: {s.epochs} epochs, batch {s.batch_size}, peak learning rate "
        f"{s.learning_rate:g}, frames per clip {', '.join(map(str, s.frames))}"
        for s in config.stages
    )
    recalls = "\n".join(
        f"| {label} | {_percent(recall)} | {support} | {_confused(scores.confusion, i, labels)} |"
        for i, (label, recall, support) in enumerate(
            zip(labels, scores.recall, scores.confusion.sum(1), strict=True)
        )
    )
    return f"""# {config.network.name}

An EMO-LLaMA (arXiv 2408.11424): LLaMA-VID's frame tokens with Face Info Mining, {_origin(config)}
by `emolake tune`. It reads the apparent facial expression of aligned face crops and answers
with one of: {", ".join(labels)}.

## Training
Data: `{Path(config.data.train).name}`, {train} labelled pictures; every face found by MTCNN, aligned by
its five points and cut as the face stage cuts it. Seed {config.seed}. Stages:
{stages}

Where the table has votes, what was learnt is what all who voted saw. A clip is several augmented views of
one picture: the model has seen the camera move and mouths move as in speech, never an expression change.

## How well it does
On `{Path(config.data.valid).name}` ({scores.n} pictures, also used to choose the weights and to fit the
temperature stored in config.json): accuracy {_percent(scores.war)},
UAR {_percent(scores.uar)}, macro F1 {_percent(scores.macro_f1)}, ECE {scores.ece:.3f}.

| label | recall | pictures | most often taken for |
| --- | --- | --- | --- |
{recalls}

`emolake evaluate` tells these with their intervals, what one of the people who voted would score, how much
blur, noise and the like cost, and what abstaining brings.

## Where it fails
- The labels it confuses are in the table above; the rare ones suffer most.
- Profiles, faces smaller than about 40 pixels, hands before the face, strong blur.
- It sees gray, 48 x 48 pixels: colour and fine texture are lost to it.
- Groups that its training pictures show rarely are read less well; no audit by group was made.

## What it must not be used for
The label is the apparent expression of a face in a picture, as labellers would name it. It is not
what a person feels, and no ground for a decision about a person.
"""


def _origin(config: TuneConfig) -> str:
    if config.start is None:
        return "trained from scratch"
    if config.adapter is not None:
        return f"tuned from `{config.start.model}` with LoRA of rank {config.adapter.rank}"
    return f"trained from weights of `{config.start.model}`"


def _percent(part: float) -> str:
    return "-" if np.isnan(part) else f"{100 * part:.1f} %"


def _confused(confusion: NDArray[np.int64], row: int, labels: tuple[str, ...]) -> str:
    others = confusion[row].copy()
    others[row] = -1
    return labels[int(others.argmax())] if others.max() > 0 else "-"
