"""What is said on paper of a GPU: whose tensors are where, what waits, what is held. No GPU is needed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from emolake.jobs.bench.paper import DEVICE, GPUS, Ledger, on_paper, pretended
from emolake.jobs.cli import main
from emolake.pipeline.annotators.base import load_annotator
from emolake.pipeline.annotators.batches import MicroBatches
from emolake.pipeline.annotators.emo_llama import EmoLlamaAnnotator
from emolake.pipeline.config import AnnotatorConfig
from tests.pipeline.annotators.systems import (
    landmark_network,
    random_emola,
    random_emotion_llama,
    random_encoders,
)
from tests.pipeline.annotators.test_annotators import clip, emola_windows
from tests.pipeline.models.test_inference import saved, window

ANSWER = 4


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("systems")
    landmarks = {"landmark_network": str(landmark_network(folder / "2d106det.onnx"))}
    return {
        "emo-llama": (saved(folder / "emo-llama"), {}),
        "emola": (random_emola(folder / "emola"), landmarks),
        "emotion-llama": (
            random_emotion_llama(folder / "emotion-llama"),
            random_encoders(folder / "encoders"),
        ),
    }


@pytest.fixture(autouse=True)
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(cls: Any, path: Path, **_: object) -> tuple[nn.Module, dict[str, list[str]]]:
        config = cls.config_class.from_pretrained(path)
        config.mask_ratio = 0.0
        made = pretended(lambda: cls(config), lambda _: lambda _: torch.float32)
        made.to = lambda *_: made  # it is there; fake weights cannot be swapped
        return made, {"missing_keys": []}

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(unread))


def annotated(
    system: tuple[Path, dict[str, str]], ledger: Ledger, counts: tuple[int, ...], **more: Any
) -> Iterator[int]:
    """Micro-batches of so many windows, from encoded pictures to annotations."""
    folder, options = system
    annotator: Any = load_annotator(
        str(folder), AnnotatorConfig(**options, max_answer_tokens=ANSWER, **more), DEVICE
    )
    annotator.batches = MicroBatches(max(counts))  # no thread: modes are a thread's own
    for count in (1, *counts):
        ledger.started()
        if isinstance(annotator, EmoLlamaAnnotator):
            windows = [window(annotator, seed) for seed in range(count)]
        elif folder.name == "emola":
            windows = emola_windows(annotator.needs.crops[0], count)
        else:
            windows = [clip(annotator.needs)] * count
        assert len(annotator.annotate(windows)) == count
        yield count


@pytest.mark.parametrize("name", ["emo-llama", "emola", "emotion-llama"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_micro_batch_waits_for_the_gpu_once_however_many_windows(
    systems, name: str, precision: str
) -> None:
    """And all that meets in an operator is on one device: a fake tensor minds."""
    with on_paper() as ledger:
        for number, _ in enumerate(annotated(systems[name], ledger, (1, 3), precision=precision)):
            if number:  # the first reads what all prompts share
                assert ledger.waits == ["aten._to_copy.default"], "the scores come home"
        assert {cost[2] for cost in ledger.costs if cost[0]} == {precision == "bfloat16"}


def test_a_mirrored_batch_waits_once_more(systems) -> None:
    with on_paper() as ledger:
        for _ in annotated(systems["emo-llama"], ledger, (3,), flip=True):
            assert len(ledger.waits) == 2


@pytest.mark.parametrize("name", ["emo-llama", "emola", "emotion-llama"])
def test_a_written_answer_waits_by_its_tokens_and_not_by_windows(systems, name: str) -> None:
    waits = []
    with on_paper() as ledger:
        for _ in annotated(systems[name], ledger, (1, 3), describe=True):
            waits.append(len(ledger.waits))
    assert waits[1] == waits[2] <= 2 + 3 * (ANSWER - 1)


def test_a_prompts_cache_is_held_in_the_type_that_attention_reads(systems) -> None:
    folder, options = systems["emola"]
    for precision, held in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        config = AnnotatorConfig(precision=precision, **options)
        annotator: Any = load_annotator(str(folder), config, "cpu")
        annotator.annotate(emola_windows(annotator.needs.crops[0], 1))
        (prefix,) = annotator.language._prefixes.values()
        assert {part.dtype for layer in prefix._layers for part in layer} == {held}


def test_what_waits_is_seen() -> None:
    with on_paper() as ledger:
        here, there = torch.zeros(3), torch.zeros(3, device=DEVICE)
        for waits, work in (
            (0, lambda: here.pin_memory().to(DEVICE, non_blocking=True)),
            (1, lambda: here.to(DEVICE, non_blocking=True)),
            (1, lambda: here.pin_memory().to(DEVICE)),
            (1, lambda: there.cpu()),
            (1, lambda: there.tolist()),
            (1, lambda: bool(there.sum() > 0)),
            (1, lambda: there.copy_(here)),
            (1, lambda: torch.tensor([1, 2], device=DEVICE)),
            (0, lambda: there.bfloat16() + 1),
        ):
            ledger.started()
            work()
            assert len(ledger.waits) == waits
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(RuntimeError, match="nonzero"):
            there[there > 0]


def test_the_ledger_counts_as_torchs_own_trackers() -> None:
    def work(network: nn.Module, given: torch.Tensor) -> torch.Tensor:
        return network(given) + given

    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 512))

    with on_paper() as ledger, torch.no_grad():
        network = pretended(layers, lambda _: lambda _: torch.float32)
        given = torch.empty(128, 512, device=DEVICE)
        ledger.started()
        work(network, given)
        flop = sum(cost[0] for cost in ledger.costs)
        assert all(ledger.seconds(gpu) > flop / gpu.float32 for gpu in GPUS.values())
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tracker, network = MemTracker(), layers()
        given = torch.empty(128, 512)
        tracker.track_external(network, given)
        with tracker:
            work(network, given)
    assert flop == counter.get_total_flops()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    assert ledger.peak() == peak["Total"]


def test_a_pretended_gpu_runs_out_and_the_batch_grows_to_what_it_holds() -> None:
    """`MicroBatches` meets the ledger's memory as it would CUDA's."""
    seen: list[int] = []

    def forward(batch: list[int]) -> list[int]:
        seen.append(len(batch))
        torch.empty(len(batch) * 30 * 512, dtype=torch.uint8, device=DEVICE)
        return batch

    with on_paper(capacity=1000 * 512) as ledger:
        weights = torch.empty(100 * 512, dtype=torch.uint8, device=DEVICE)
        batches = MicroBatches(1)
        batches._memory = ledger
        assert list(batches.run(list(range(60)), list, forward)) == list(range(60))
        assert seen == [1, 2, 4, 8, 16, 16, 13]
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(900 * 512 + 1, dtype=torch.uint8, device=DEVICE)
        del weights
        assert ledger.held == 0


def test_the_command_prints_the_table_and_goes_with_the_7b_shape_alone(monkeypatch, capsys) -> None:
    row = {"system": "s", "precision": "bfloat16", "micro_batch": 64, "peak_gb": 70.5, "tflop": 5.1}
    rows = [row | {"moved_gb": 16.3, "H100": 117.0, "A100": 45.9, "L4": None}]
    monkeypatch.setattr("emolake.jobs.bench.paper.paper", lambda: iter(rows))
    asked = ["bench", "annotate", "--shape", "7b", "--paper"]
    assert main(asked) == 0
    assert "| s | bfloat16 | 64 | 70.5 | 5.1 | 16.3 | 117.0 | 45.9 | - |" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows
    for other in (["bench", "annotate", "--paper"], ["bench", "faces", "--shape", "7b", "--paper"]):
        assert main(other) == 2
        assert "--paper goes with annotate --shape 7b" in capsys.readouterr().err
