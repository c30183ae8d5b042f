"""Published checkpoints -> model folders, without ever holding a model in memory.

The files are mapped and tensors are written shard by shard under our names; what LoRA or EVA's split
bias must compute is computed for the tensor at hand. Anything missing, left over or misshapen is named
and refuses the conversion before a file is written.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.models.catalog import CARD, CONFIG, INDEX, QUESTION_TOKENIZER, TOKENIZER
from emolake.pipeline.models.config import ModelConfig, read_json
from emolake.pipeline.models.emotion_llama import WRAPPED
from emolake.pipeline.models.families import PUBLISHED
from emolake.pipeline.models.published import lora_base
from emolake.pipeline.storage.hub import plain_name
from emolake.pipeline.storage.weights import check_fit, empty_parameters

_SHARD_BYTES = 1 << 30
_KINDS = (("model.safetensors", INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
_SINGLE = (".pth", ".pt", ".bin", ".safetensors")
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Sources:
    """Where a system was published. main: its own folder or file; base: the language model's folder,
    where `main` holds an adapter alone; vision: the tower's file or folder, where it came apart;
    question_tokenizer: the Q-Former's, for LLaMA-VID."""

    main: Path
    base: Path | None = None
    vision: Path | None = None
    question_tokenizer: Path | None = None


@dataclass(frozen=True)
class Converted:
    """What was written."""

    tensors: int
    shards: int
    bytes: int


def check_output(output: Path) -> None:
    """UserError where no new folder can be made."""
    if output.exists():
        raise UserError(f"--output {output} is there already; name a new folder")
    above = output.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--output {output} cannot be made: {above} is no folder to write to")


def convert(
    family: str, sources: Sources, output: Path, name: str | None = None, licence: str | None = None
) -> Converted:
    """Writes a model folder. name: the model's, by default made of the source's; licence: as its card shall
    tell it. UserError for sources that are not of the family's layout, or an output that cannot be."""
    check_output(output)
    layout = PUBLISHED[family]
    folder = sources.base or sources.main
    published = read_json(folder / CONFIG)
    files, side = _parts_of(family, sources)
    if (sources.main / _ADAPTER_CONFIG).exists():
        published |= {"lora_alpha": read_json(sources.main / _ADAPTER_CONFIG).get("lora_alpha")}
    shapes = {name: tensor.to("meta") for file in files for name, tensor in read_file(file).items()}
    shapes |= {name: tensor.to("meta") for name, tensor in side.items()}
    config: ModelConfig = layout.config(published, {k: tuple(v.shape) for k, v in shapes.items()})
    name = name or f"{family}-{Path(plain_name(sources.main)).stem}"
    config = config.model_copy(update={"name": name})
    fitting = layout.rename(shapes, config)
    with empty_parameters():
        check_fit(layout.network(config), {k: tuple(v.shape) for k, v in fitting.items()})
    with _made_aside(output) as aside:
        _write_tokenizers(sources, folder, aside)
        (aside / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
        (aside / CARD).write_text(_card(family, sources, config, licence))
        renamed = (layout.rename(part, config) for part in _parts(files, side))
        written = _write_shards(renamed, aside)
        if written.tensors != len(fitting):
            raise RuntimeError(f"{written.tensors} of {len(fitting)} tensors were written")
    return written


@contextmanager
def _made_aside(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when all is in it. UserError where somebody else is making that one."""
    aside = output.with_name(f".{output.name}.partial")
    aside.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{aside}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"--output {output} is being written by another process") from None
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
        aside.mkdir()
        yield aside
        aside.rename(output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _parts(files: list[Path], side: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors in parts that can be renamed one after another: each file with what belongs to its
    tensors (halves of LoRA, of EVA's bias), then the rest. A part is let go before the next is read."""
    adapters = {name: tensor for name, tensor in side.items() if lora_base(name)}
    biases = {
        name: tensor.clone()
        for file in files
        for name, tensor in read_file(file).items()
        if name.endswith((".q_bias", ".v_bias"))
    }
    for file in files:
        # What was trained further stands beside the base, and takes the place of the base's.
        part = {name: tensor for name, tensor in read_file(file).items() if name not in side}
        part |= biases | {n: t for n, t in adapters.items() if lora_base(n) in part}
        yield part
        del part
    yield biases | {name: tensor for name, tensor in side.items() if name not in adapters}


def _parts_of(family: str, sources: Sources) -> tuple[list[Path], dict[str, Tensor]]:
    """The language model's files, and all smaller tensors by the published names, mapped."""
    if family == "llama-vid":
        return weight_files_of(sources.main), _tower(sources, "model.vision_tower.vision_tower.")
    base = sources.base
    if base is None:
        raise UserError(f"--family {family} is published as an adapter; name its --base folder")
    if family == "emotion-llama":
        tower = _tower(sources, "visual_encoder.")
        width = next((t.shape[-1] for n, t in tower.items() if n.endswith("cls_token")), 0)
        # MiniGPT-v2 keeps this norm as it is made, and publishes it with some checkpoints only.
        norm = {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}
        (main,) = weight_files_of(sources.main)[:1]
        trained = {n.removeprefix(WRAPPED): t for n, t in read_file(main).items()}
        return weight_files_of(base), tower | norm | trained
    tower = _tower(sources, "model.vision_tower.vision_tower.")
    tower = {n: t for n, t in tower.items() if ".vision_model." in n}  # CLIP's text side stays
    adapter = _emola_adapter(sources.main)
    return weight_files_of(base), tower | adapter


def _emola_adapter(folder: Path) -> dict[str, Tensor]:
    """LLaVA's way of publishing LoRA: adapter, other trained parts, and EmoLA's landmark projector;
    `base_model.` and a doubled `model.` are stripped as LLaVA strips them."""
    adapter = next((folder / name for name in _ADAPTERS if (folder / name).exists()), None)
    if adapter is None:
        raise UserError(f"{folder} holds no adapter ({' or '.join(_ADAPTERS)})")
    adapted = read_file(adapter)
    tensors = {name.removeprefix("base_model.model."): t for name, t in adapted.items()}
    for name, tensor in read_file(folder / "non_lora_trainables.bin").items():
        bare = name.removeprefix("base_model.")
        tensors["model." + bare.removeprefix("model.model.").removeprefix("model.")] = tensor
    for name, tensor in read_file(folder / "landmark_feature_projector.bin").items():
        layer = name.rpartition("landmark_feature_projector.")[2]
        tensors[f"model.landmark_feature_projector.{layer}"] = tensor
    return tensors


def _tower(sources: Sources, prefix: str) -> dict[str, Tensor]:
    if sources.vision is None:
        return {}
    tensors: dict[str, Tensor] = {}
    for file in weight_files_of(sources.vision):
        tensors |= {prefix + name: tensor for name, tensor in read_file(file).items()}
    return tensors


def weight_files_of(path: Path) -> list[Path]:
    """A checkpoint file, or a folder's: whole, the shards that its index names, or the one file that it has.
    UserError where it has none, or several."""
    if path.is_file():
        return [path]
    for whole, index in _KINDS:
        if (path / index).exists():
            names = set(read_json(path / index).get("weight_map", {}).values())
            return [path / file for file in sorted(names)]
        if (path / whole).exists():
            return [path / whole]
    single = [file for file in path.glob("*") if file.suffix in _SINGLE]
    if len(single) == 1:
        return single
    known = ", ".join(name for kind in _KINDS for name in kind)
    raise UserError(f"{path} holds no checkpoint ({known}, or a single file of another name)")


def read_file(path: Path) -> dict[str, Tensor]:
    """A file's tensors, mapped and not read; never by unpickling anything but tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path} is not there; the checkpoint is not complete") from None
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a checkpoint of tensors: {in_a_line(error, 200)}") from None
    content = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state dict")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _write_shards(parts: Iterator[dict[str, Tensor]], folder: Path) -> Converted:
    """safetensors of at most _SHARD_BYTES, and their index in the form that `transformers` writes."""
    index: dict[str, str] = {}
    total = shards = 0
    for part in parts:
        new = {name: tensor for name, tensor in part.items() if name not in index}
        for names in _shards(new):
            shards += 1
            file = f"model-{shards:05}.safetensors"
            save_file({name: new[name].contiguous() for name in names}, folder / file)
            index |= dict.fromkeys(names, file)
            total += sum(new[name].nbytes for name in names)
        part.clear()
        new.clear()
    told = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / INDEX).write_text(json.dumps(told, indent=1) + "\n")
    return Converted(len(index), shards, total)


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for name, tensor in sorted(tensors.items()):
        if held and size + tensor.nbytes > _SHARD_BYTES:
            yield held
            held, size = [], 0
        held.append(name)
        size += tensor.nbytes
    if held:
        yield held


def _write_tokenizers(sources: Sources, folder: Path, target: Path) -> None:
    _write_tokenizer(folder, target / TOKENIZER)
    if sources.question_tokenizer is not None:
        _write_tokenizer(sources.question_tokenizer, target / QUESTION_TOKENIZER)


def _write_tokenizer(source: Path, target: Path) -> None:
    """A tokenizer.json as it is; other forms through `transformers`."""
    ready = source if source.is_file() else source / TOKENIZER
    if ready.exists():
        shutil.copyfile(ready, target)
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(source), local_files_only=True, use_fast=True, trust_remote_code=False
        )
        tokenizer.backend_tokenizer.save(str(target))
    except Exception as error:  # whatever the library's many loaders raise
        raise UserError(
            f"{source} holds no tokenizer.json, and its tokenizer cannot be read: {in_a_line(error, 200)}"
        ) from None


def _card(family: str, sources: Sources, config: ModelConfig, licence: str | None) -> str:
    head = yaml.safe_dump({"license": "other", "license_name": licence}) if licence else ""
    return (f"---\n{head}---\n" if head else "") + (
        f"# {config.name}\n\nConverted from {plain_name(sources.main)} ({family}) by `emolake models "
        "convert`; the licence and the limits are those of the published weights.\n"
    )
