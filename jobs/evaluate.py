"""`emolake evaluate`: a model against a labelled table of face pictures."""

from __future__ import annotations

import argparse
import math
from typing import Any

from jobs.cli import print_json
from pipeline.config import AnnotatorConfig
from pipeline.errors import UserError
from pipeline.labels import label_set
from pipeline.models.catalog import model_folder
from pipeline.models.config import ModelConfig


def evaluate_command(options: argparse.Namespace) -> int:
    config = ModelConfig.read(model_folder(options.model))
    labels = label_set(options.label_set or config.label_set)
    if not options.data.exists():
        raise UserError(f"{options.data} does not exist; name a Parquet file with image and label")
    result = _evaluated(options, config, labels)
    if options.json:
        print_json(result)
        return 0
    print(
        f"{result['n']} pictures: accuracy {result['war']:.4f}, UAR {result['uar']:.4f}, "
        f"macro F1 {result['macro_f1']:.4f}, ECE {result['ece']:.4f}"
    )
    for label, recall in result["per_class_recall"].items():
        print(f"  {label:<14} {'-' if recall is None else f'{recall:.3f}'}")
    return 0


def _evaluated(
    options: argparse.Namespace, config: ModelConfig, labels: tuple[str, ...]
) -> dict[str, Any]:
    import numpy as np

    from pipeline.annotators.base import load_annotator
    from pipeline.annotators.still import still_window
    from pipeline.faces.mtcnn import Mtcnn
    from pipeline.training.faces import decode_picture, read_labelled_pictures
    from pipeline.training.metrics import classification_scores

    annotator = load_annotator(options.model, AnnotatorConfig(label_set=options.label_set), "cpu")
    mtcnn = Mtcnn()
    windows, truth, unreadable = [], [], 0
    for encoded, label in read_labelled_pictures(options.data, labels):
        try:
            picture = decode_picture(encoded)
        except ValueError:
            unreadable += 1
            continue
        windows.append(still_window(picture, mtcnn, config.crop))
        truth.append(label)
    if not windows:
        raise UserError(f"{options.data} holds no readable picture")
    made = annotator.annotate(windows)
    probabilities = np.array([[a.scores[label] for label in labels] for a in made])
    scores = classification_scores(probabilities, np.array(truth))
    return {
        "n": scores.n,
        "war": scores.war,
        "uar": scores.uar,
        "macro_f1": scores.macro_f1,
        "ece": scores.ece,
        "nll": scores.nll,
        "labels": list(labels),
        "confusion": scores.confusion.tolist(),
        "per_class_recall": {
            label: None if math.isnan(recall) else float(recall)
            for label, recall in zip(labels, scores.recall, strict=True)
        },
        "unreadable": unreadable,
        "model": {"name": annotator.name, "revision": annotator.revision},
    }
