"""What an inference process imports of transformers, and that it infers the same."""

import json
import subprocess
import sys

import numpy as np

_INFERS = """
import json, sys
if sys.argv[1] == "lean":
    from emolake.pipeline.models.inference_only import import_for_inference
    import_for_inference()
from emolake.jobs.bench.annotate import _windows
from emolake.pipeline.annotators.base import load_annotator
from emolake.pipeline.config import AnnotatorConfig
annotator = load_annotator("emo-llama-tiny", AnnotatorConfig(), "cpu")
told = [list(of.scores.values()) for of in annotator.annotate(_windows(annotator, 3))]
heavy = ("accelerate", "torchao", "torch.distributed.tensor", "torch._dynamo.convert_frame", "sympy")
imported = [name for name in heavy if name in sys.modules]
import torch
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist()
print(json.dumps([told, imported, doubled]))
"""


def _infers(how: str) -> tuple[list[list[float]], list[str], list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", _INFERS, how], check=True, capture_output=True, text=True
    )
    scores, imported, doubled = json.loads(done.stdout.splitlines()[-1])
    return scores, imported, doubled


def test_inference_imports_little_scores_the_same_and_can_still_compile() -> None:
    scores, imported, doubled = _infers("lean")
    as_it_is, of_all, _ = _infers("whole")
    assert scores == as_it_is
    assert np.allclose(np.sum(scores, axis=1), 1)
    assert imported == [], "the part of transformers that inference never calls"
    assert {"torch.distributed.tensor", "torch._dynamo.convert_frame"} <= set(of_all)
    assert doubled == [2, 2], "the compiler is there when it is asked for"
