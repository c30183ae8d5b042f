"""The 7B systems on paper: what a micro-batch takes of a GPU, by FakeTensors that have a shape, a type and a
device and no content. No GPU is needed, nor the memory."""

from __future__ import annotations

import ctypes
import math
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from emolake.pipeline.annotators import emola, emotion_llama
from emolake.pipeline.annotators.base import WindowInput, load_annotator
from emolake.pipeline.annotators.batches import SHARE
from emolake.pipeline.annotators.clip_features import Clips
from emolake.pipeline.annotators.emo_llama import Pictures
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.labels import label_set
from emolake.pipeline.models import folder as folders
from emolake.pipeline.models.catalog import CONFIG, TOKENIZER, WEIGHTS
from emolake.pipeline.models.config import (
    EmolaConfig,
    EmoLlamaConfig,
    EmotionLlamaConfig,
    FaceInfoConfig,
    ModelConfig,
)
from emolake.pipeline.models.precision import Precision, chosen, weight_dtypes
from emolake.pipeline.models.prompts import SYSTEM, emotion_question, train_tokenizer
from emolake.pipeline.models.scoring import LabelTrie
from emolake.pipeline.models.vision import VisionTower

DEVICE = "cuda:0"
FRAMES = 8
SIZES = (1, 4, 16, 64)
_BLOCK = 512  # bytes, of torch's CUDA allocator
_aten = torch.ops.aten


@dataclass(frozen=True)
class Gpu:
    """Bytes of memory, bytes a second of it, and dense FLOP/s in float32 (no tensor cores, as torch has it
    unless told otherwise) and bfloat16."""

    memory: float
    bandwidth: float
    float32: float
    bfloat16: float


# The tables of NVIDIA's product pages, as in its datasheets; those that give bfloat16 with sparsity halved.
GPUS = {
    # SXM, 1,979 TFLOPS with sparsity: https://www.nvidia.com/en-us/data-center/h100/
    "H100": Gpu(80e9, 3.35e12, 67e12, 989.5e12),
    # 80 GB SXM: https://www.nvidia.com/en-us/data-center/a100/
    "A100": Gpu(80e9, 2.039e12, 19.5e12, 312e12),
    # 242 TFLOPS with sparsity: https://www.nvidia.com/en-us/data-center/l4/
    "L4": Gpu(24e9, 300e9, 30.3e12, 121e12),
}


class Ledger(TorchDispatchMode):
    """Of the device, operator by operator: bytes held, and the most that were; costs: FLOP, bytes read and
    written, and whether in bfloat16; waits: operators at which the host waits for it. A `Memory`."""

    def __init__(self, capacity: float = math.inf) -> None:
        super().__init__()
        self.held = self._most = 0
        self.costs: list[tuple[float, float, bool]] = []
        self.waits: list[str] = []
        self._capacity = capacity
        self._known = WeakIdKeyDictionary()
        self._pinned = WeakIdKeyDictionary()

    def started(self) -> int:
        self._most = self.held
        self.costs, self.waits = [], []
        return self.held

    def peak(self) -> int:
        return self._most

    def total(self) -> int:
        return int(self._capacity)

    def seconds(self, gpu: Gpu) -> float:
        """The least that it takes: each operator its arithmetic or its memory, whichever is longer."""
        return sum(
            max(flop / (gpu.bfloat16 if lower else gpu.float32), moved / gpu.bandwidth)
            for flop, moved, lower in self.costs
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:  # no operator of any backend
            return func(*args)
        if func in (_aten.pin_memory.default, _aten._pin_memory.default):
            out = args[0].clone()
            self._pinned[out.untyped_storage()] = True
            return out
        if func is _aten._local_scalar_dense.default:
            self._waits(func, on_device(args[0]))
            try:
                return func(*args)
            except DataDependentOutputException:
                kind = args[0].dtype
                return True if kind == torch.bool else 1.0 if kind.is_floating_point else 0
        if func is _aten.scaled_dot_product_attention.default:
            with self:
                return _attention(*args, **kwargs)
        with self:  # what inference mode leaves whole is counted in its parts
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._count(func, args, kwargs, out, given, made)
        return out

    def _count(
        self, func: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor], made: list[Tensor]
    ) -> None:
        if func in (_aten._to_copy.default, _aten.copy_.default):
            source = given[-1]
            goes, comes = on_device(made[0]), on_device(source)
            late = kwargs.get("non_blocking") or (
                func is _aten.copy_.default and args[2:] == (True,)
            )
            free = goes and late and source.untyped_storage() in self._pinned
            self._waits(func, goes != comes and not free and source.numel() > 0)
        for tensor in made:
            self._hold(tensor)
        if any(on_device(tensor) for tensor in made) and not func.is_view:
            formula = flop_registry.get(func.overloadpacket)
            flop = formula(*args, **kwargs, out_val=out) if formula else 0
            moved = sum(_bytes(tensor) for tensor in (*given, *made) if on_device(tensor))
            self.costs.append((float(flop), float(moved), made[0].dtype == torch.bfloat16))

    def _waits(self, func: Any, really: bool) -> None:
        if really:
            self.waits.append(str(func))

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if not on_device(tensor) or storage in self._known:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._known[storage] = True
        self.held += size
        if self.held > self._capacity:
            self.held -= size
            raise torch.OutOfMemoryError(f"{self.held + size} of {self.total()} bytes, on paper")
        self._most = max(self._most, self.held)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.held -= size


def on_device(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _bytes(tensor: Tensor) -> int:
    """That are read of it: a row that was expanded is one row."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None,
    dropout: float = 0.0, is_causal: bool = False, *, scale: float | None = None, **_: Any,
) -> Tensor:  # fmt: skip
    """The fused kernel that torch takes on CUDA: flash attention of halves without a mask, else the
    memory-efficient one. A build without CUDA would choose the one that keeps every score."""
    if mask is None and query.dtype != torch.float32:
        return _aten._scaled_dot_product_flash_attention.default(
            query, key, value, dropout, is_causal, scale=scale
        )[0]
    return _aten._scaled_dot_product_efficient_attention.default(
        query, key, value, mask, False, dropout, is_causal, scale=scale
    )[0]


@contextmanager
def on_paper(capacity: float = math.inf) -> Iterator[Ledger]:
    """Within it tensors are fake, `DEVICE` is there whether it is or not, and no weights are read."""
    amp = "torch.cuda.amp.common.amp_definitely_not_available"
    with ExitStack() as stack:
        stack.enter_context(_device_guard())
        stack.enter_context(mock.patch(amp, return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        for module in (folders, emola, emotion_llama):
            stack.enter_context(mock.patch.object(module, "load_network", _unread))
        # A list of the device's is one copy, and not one for each of its numbers.
        as_list = FakeTensor.tolist
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", lambda of: as_list(of.cpu())))
        stack.enter_context(mock.patch.object(VisionTower, "fuse"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Ledger(capacity))


def _unread(
    _folder: Path, make: Callable[[], nn.Module], device: str, precision: Precision | None
) -> nn.Module:
    """`load_network`, of a folder whose weights nobody has."""
    return pretended(make, lambda made: weight_dtypes(made, chosen(precision, device)))


def pretended(
    make: Callable[[], nn.Module], dtypes: Callable[[nn.Module], Callable[[str], torch.dtype]]
) -> nn.Module:
    """A module whose weights and buffers are fake and on `DEVICE`."""
    # A module that copies parts of itself would, with a fake tensor, copy the whole mode.
    with unset_fake_temporarily(), torch.device("meta"):
        network = make()
    dtype_of = dtypes(network)
    for prefix, module in network.named_modules():
        for name, held in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            dtype = dtype_of(f"{prefix}.{name}") if held.is_floating_point() else held.dtype
            fake = torch.empty(held.shape, dtype=dtype, device=DEVICE)
            is_weight = isinstance(held, nn.Parameter)
            setattr(module, name, nn.Parameter(fake, requires_grad=False) if is_weight else fake)
    return network.eval()


@contextmanager
def _device_guard() -> Iterator[None]:
    """FakeTensorMode sets a guard that does nothing where CUDA has no device, but only in a build with CUDA;
    in one without there is none at all, and the guard of meta tensors, which does nothing too, serves."""
    if torch.version.cuda is not None:
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 32).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # c10/core/DeviceType.h
    guards[cuda] = guards[meta]
    try:
        yield
    finally:
        guards[cuda] = None


def paper() -> Iterator[dict[str, Any]]:
    """A row a system, precision and micro-batch: the peak in GB, a window's TFLOP and GB moved, and windows/s
    that each GPU cannot exceed, None where it does not hold the batch. Without Emotion-LLaMA's clip encoders,
    and with nothing said."""
    systems: list[ModelConfig] = [
        EmoLlamaConfig(face_info=FaceInfoConfig(), trained=False),
        EmolaConfig(trained=False),
        EmotionLlamaConfig(trained=False),
    ]
    precisions: tuple[Precision, ...] = ("bfloat16", "float32")
    for config in systems:
        for precision in precisions:
            with tempfile.TemporaryDirectory() as folder, on_paper() as ledger:
                forward = _loaded(Path(folder), config, precision)
                forward(1)  # reads what all prompts share
                for size in SIZES:
                    ledger.started()
                    forward(size)
                    yield _row(ledger, config.name, precision, size)


def _row(ledger: Ledger, system: str, precision: str, size: int) -> dict[str, Any]:
    row: dict[str, Any] = {"system": system, "precision": precision, "micro_batch": size}
    row["peak_gb"] = round(ledger.peak() / 1e9, 2)
    row["tflop"] = round(sum(flop for flop, _, _ in ledger.costs) / size / 1e12, 3)
    row["moved_gb"] = round(sum(moved for _, moved, _ in ledger.costs) / size / 1e9, 2)
    for name, gpu in GPUS.items():
        fits = ledger.peak() < SHARE * gpu.memory
        row[name] = round(size / ledger.seconds(gpu), 1) if fits else None
    return row


def _loaded(folder: Path, config: ModelConfig, precision: Precision) -> Callable[[int], Any]:
    """An annotator of that shape: the forward pass of so many windows, whatever is in them."""
    (folder / CONFIG).write_text(config.model_dump_json())
    (folder / WEIGHTS).touch()
    # Words whole, as a LLaMA's tokenizer has those of a prompt.
    words = train_tokenizer(
        [SYSTEM, emotion_question(label_set(config.label_set)), emola.EMOTION_QUESTION], 32000
    )
    words.save(str(folder / TOKENIZER))
    with mock.patch.object(emola, "LandmarkNetwork"):
        annotator: Any = load_annotator(str(folder), AnnotatorConfig(precision=precision), DEVICE)
    side = config.vision.image_size  # type: ignore[attr-defined]

    def pixels(count: int) -> Tensor:
        return torch.empty(count, side, side, 3, dtype=torch.uint8).pin_memory()

    def emo_llama(size: int) -> Any:
        features = torch.empty(size, FRAMES, annotator.model_config.face_info.global_dim)
        points = torch.empty(size, FRAMES, 5, 2)
        given = Pictures(pixels(size * FRAMES), features.pin_memory(), points.pin_memory())
        prompt = annotator.prompter.emotion(annotator.labels)
        return annotator.forward(given, prompt, LabelTrie.of(prompt.labels))

    def of_emola(size: int) -> Any:
        landmarks = torch.empty(size, annotator.config.landmark_dim).pin_memory()
        return annotator.forward(emola.Faces(pixels(size), landmarks))

    def of_emotion_llama(size: int) -> Any:
        window = WindowInput({}, np.zeros((FRAMES, 0), np.float32))
        clips = Clips([FRAMES] * size, None, None, [])
        return annotator.forward(emotion_llama.Given([window] * size, pixels(size), clips))

    by_family = {"emola": of_emola, "emotion-llama": of_emotion_llama}
    return by_family.get(config.family, emo_llama)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    names = ("system", "precision", "micro_batch", "peak_gb", "tflop", "moved_gb", *GPUS)
    yield "| " + " | ".join(names) + " |"
    yield "| " + " | ".join("---" for _ in names) + " |"
    for row in rows:
        yield "| " + " | ".join("-" if row[n] is None else f"{row[n]}" for n in names) + " |"
