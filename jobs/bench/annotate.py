"""The annotation stage against the reference's way of asking and against batched `generate`, with the same
weights in one run. Neither Ray nor PyAV is needed: windows are made up, their cost is not."""

from __future__ import annotations

import resource
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from emolake.jobs.bench.measurement import Measurement, less_is_better, more_is_better

_FRAMES = 8
_ANSWER_TOKENS = 8
"""What a model that never stops is allowed to write; a label and its stop take two to four."""
_WINDOWS = {"tiny": 64, "100m": 16, "7b": 64}
_BATCH = 16
_CEILING_SECONDS = 5.0


def bench_annotate(_clips: list[Path], _scratch: Path, options: Namespace) -> Iterator[Measurement]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # as an annotation actor on a CPU computes
    shapes = [options.shape] if options.shape else ["tiny", "100m"]
    for shape in shapes:
        yield from _shape(shape, device, options.profile)


def _shape(shape: str, device: str, profile: Path | None) -> Iterator[Measurement]:
    import torch

    from emolake.pipeline.annotators.emo_llama import EmoLlamaAnnotator
    from emolake.pipeline.config import AnnotatorConfig

    rates: dict[str, float] = {}
    single = 0.0
    precisions = ("bfloat16",) if device == "cuda" else ("float32", "bfloat16")
    batch = None if device == "cuda" else _BATCH
    for precision in precisions:
        config = AnnotatorConfig(precision=precision, micro_batch=batch)
        annotator = EmoLlamaAnnotator.around(_loaded(shape, device, precision), config, device)
        windows = _windows(annotator, _WINDOWS[shape])
        annotator.annotate(windows)  # sizes its batches, warms up
        rate = _rate(lambda: annotator.annotate(windows), len(windows))  # noqa: B023
        rates[precision] = rate
        name = f"{shape}, {precision}: "
        if precision == precisions[0]:
            with torch.inference_mode():
                single = _rate(lambda: _one_by_one(annotator, windows), len(windows))  # noqa: B023
                batched = _rate(lambda: _generated(annotator, windows), len(windows))  # noqa: B023
            yield more_is_better(
                name + "labels scored / one window a call, generated", rate, single, "windows/s", 8
            )
            yield more_is_better(
                name + "labels scored / generated in batches", rate, batched, "windows/s", 2
            )
        else:
            yield more_is_better(
                name + "labels scored / the same in float32", rate, rates["float32"], "windows/s", 1
            )
        ready = _rate(lambda: annotator.prepared(windows), len(windows))  # noqa: B023
        yield more_is_better(name + "windows made ready / scored", ready, rate, "windows/s", 1.5)
        work, tokens = _work(annotator, windows[:4])
        ceiling = _ceiling(device, precision)
        yield more_is_better(
            name + "model FLOP/s / matmul of the device",
            work * rate / 1e9, ceiling / 1e9, "GFLOP/s", 0.45,
        )  # fmt: skip
        yield more_is_better(
            name + "prompt tokens / one window a call",
            tokens * rate,
            tokens * single,
            "tokens/s",
            1,
        )
        if profile is not None:
            _profile(annotator, windows[:_BATCH], profile, name)
    yield less_is_better(f"{shape}: peak memory / 24 GB", _peak_gb(device), 24.0, "GB", 1)


def _loaded(shape: str, device: str, precision: str) -> Any:
    """The embedded model, or one of random weights made on the device."""
    import torch

    from emolake.pipeline.models.catalog import DEFAULT_MODEL
    from emolake.pipeline.models.emo_llama import EmoLlama
    from emolake.pipeline.models.folder import QUESTION_LIMIT, LoadedModel, load_model
    from emolake.pipeline.models.precision import weight_dtypes
    from emolake.pipeline.models.prompts import Prompter, train_tokenizer

    if shape == "tiny":
        return load_model(DEFAULT_MODEL, device, precision)  # type: ignore[arg-type]
    config = _config(shape)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    # Made in the type that most of it is held in: a 7B in float32 would be the peak of its memory.
    torch.set_default_dtype(getattr(torch, precision))
    try:
        with torch.device(device):
            network = EmoLlama(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    dtype_of = weight_dtypes(network, precision)  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.to(dtype_of(name))
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.float())
    tokenizer = train_tokenizer(["the words of the prompt are spelled in bytes"], 400)
    prompter = Prompter(tokenizer, tokenizer, QUESTION_LIMIT)
    return LoadedModel(shape, "random", config, network, prompter)


def _config(shape: str) -> Any:
    from emolake.pipeline.models.config import (
        EmoLlamaConfig,
        FaceInfoConfig,
        LanguageConfig,
        QFormerConfig,
        VisionConfig,
    )

    if shape == "7b":
        return EmoLlamaConfig(name=shape, face_info=FaceInfoConfig(), trained=False)
    return EmoLlamaConfig(
        name=shape,
        trained=False,
        vision=VisionConfig(image_size=112, patch_size=14, width=512, depth=10, heads=8, mlp_hidden=2048),
        qformer=QFormerConfig(vocab_size=640, width=384, depth=4, heads=6, mlp_hidden=1536, num_query=8),
        language=LanguageConfig(vocab_size=640, width=640, depth=10, heads=10, mlp_hidden=1920),
        face_info=FaceInfoConfig(),
    )  # fmt: skip


def _windows(annotator: Any, count: int) -> list[Any]:
    import cv2
    import numpy as np

    from emolake.pipeline.annotators.base import FaceCrops, WindowInput
    from emolake.pipeline.faces.encoding import encode_crop

    rng = np.random.default_rng(0)
    config = annotator.model_config
    side = config.vision.image_size
    # Smooth, with a camera's noise: as long to decode as a face.
    coarse = rng.integers(0, 240, (8, side // 8, side // 8, 3), np.uint8)
    smooth = [cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC) for one in coarse]
    noise = rng.integers(0, 12, (8, side, side, 3), np.uint8)
    faces = [encode_crop(cv2.add(a, b), "png") for a, b in zip(smooth, noise, strict=True)]
    made = []
    for _ in range(count):
        pictures = [faces[int(k)] for k in rng.integers(0, len(faces), _FRAMES)]
        points = rng.random((_FRAMES, 5, 2)).astype(np.float32)
        features = rng.normal(size=(_FRAMES, config.face_info.global_dim)).astype(np.float32)
        made.append(WindowInput({annotator.view: FaceCrops(pictures, points)}, features))
    return made


def _rate(work: Callable[[], Any], count: int) -> float:
    import torch

    best = 0.0
    for _ in range(2):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, count / (time.perf_counter() - started))
    return best


def _one_by_one(annotator: Any, windows: list[Any]) -> None:
    """The reference's loop: a window a call, sampled, with the settings of its demo."""
    for window in windows:
        _written(annotator, [window], do_sample=True, temperature=0.2)


def _generated(annotator: Any, windows: list[Any]) -> None:
    for at in range(0, len(windows), _BATCH):
        _written(annotator, windows[at : at + _BATCH], do_sample=False)


def _written(annotator: Any, windows: list[Any], **how: Any) -> list[str]:
    from emolake.pipeline.models.precision import computing

    prompt = annotator.prompter.emotion(annotator.labels)
    with computing(annotator.options.precision, annotator.device):
        embeds = annotator.embeds(annotator.prepared(windows).on(annotator.device), prompt)
        ids = annotator.network.language.generate(
            inputs_embeds=embeds,
            attention_mask=embeds.new_ones(embeds.shape[:2]).long(),
            max_new_tokens=_ANSWER_TOKENS,
            eos_token_id=annotator.prompter.eos,
            pad_token_id=annotator.prompter.eos,
            **how,
        )
    return [annotator.prompter.tokenizer.decode(row) for row in ids.tolist()]


def _work(annotator: Any, windows: list[Any]) -> tuple[float, float]:
    """FLOP and prompt tokens of one window, counted as it runs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from emolake.pipeline.models.precision import computing
    from emolake.pipeline.models.scoring import LabelTrie

    prompt = annotator.prompter.emotion(annotator.labels)
    given = annotator.prepared(windows)
    with FlopCounterMode(display=False) as counter:
        annotator.forward(given, prompt, LabelTrie.of(prompt.labels))
    with torch.inference_mode(), computing(annotator.options.precision, annotator.device):
        length = annotator.embeds(given.on(annotator.device), prompt).shape[1]
    return counter.get_total_flops() / len(windows), float(length)


def _ceiling(device: str, precision: str) -> float:
    """FLOP/s of a large matrix product: what the device can do, and models hardly ever do."""
    import torch

    largest, side, rate = 8192 if device == "cuda" else 2048, 256, 0.0
    # A CPU may have no instructions for a precision: a large product of it would take minutes there.
    while side <= largest and (not rate or 16 * side**3 / rate < _CEILING_SECONDS):
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in "ab")
        with torch.inference_mode():
            rate = max(rate, _rate(partial(_products, a, b), 4) * 2 * side**3)
        side *= 2
    return rate


def _products(a: Any, b: Any) -> None:
    for _ in range(4):
        a @ b


def _peak_gb(device: str) -> float:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _profile(annotator: Any, windows: list[Any], file: Path, name: str) -> None:
    """Appends the operators that take the most time."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = annotator.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as told:
        annotator.annotate(windows)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = told.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=60)
    with file.open("a") as out:
        out.write(f"{name}\n{table}\n")
