"""LoRA through peft: training adapters, and folders of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.models.catalog import content_of, model_path, model_revision
from emolake.pipeline.models.config import read_json
from emolake.pipeline.models.emo_llama import EmoLlama

_FULL = "trained_in_full.safetensors"
_CONFIG = "adapter_config.json"
_PROJECTIONS = (
    *("text_projection", "key_projection"),
    *("value_projection", "content_projection"),
)


class AdapterConfig(BaseModel):
    """LoRA (Hu et al. 2021) on the language model. Face Info Mining and the projections into the language
    model are trained in full beside it; the vision side and the Q-Former stand still."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def adapted(network: EmoLlama, config: AdapterConfig, base: str) -> EmoLlama:
    """The network with LoRA in its language model and nothing trainable but that, Face Info Mining and
    the projections. base: the model that `network` is. UserError where peft is missing or a target is
    no layer."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("adapter needs peft: pip install 'emolake[tune]'") from None

    network.requires_grad_(False)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        revision=content_of(model_revision(model_path(base))),
    )
    try:
        network.language = get_peft_model(network.language, lora)  # type: ignore[assignment]
    except ValueError as error:
        raise UserError(f"adapter.targets: {in_a_line(error, 200)}") from None
    # peft takes the name of the language model, which has none, for the base's.
    network.language.peft_config["default"].base_model_name_or_path = base
    for name in _full(network):
        network.get_submodule(name).requires_grad_(True)
    return network


def save_adapter(network: EmoLlama, folder: Path) -> EmoLlama:
    """Writes the adapter in peft's layout, with what was trained in full beside it, and returns the
    network with it merged in."""
    # peft would ask a hub about the embeddings, which no adapter of ours touches.
    network.language.save_pretrained(str(folder), save_embedding_layers=False)
    tensors = network.state_dict()
    parts = tuple(f"{name}." for name in _full(network))
    full = {name: t.contiguous().cpu() for name, t in tensors.items() if name.startswith(parts)}
    save_file(full, folder / _FULL)
    network.language = network.language.merge_and_unload()  # type: ignore[operator]
    return network


def merge_adapter(network: EmoLlama, folder: Path, base: str) -> EmoLlama:
    """Merges the adapter in `folder` into `network`, which is the model `base`. UserError where it was
    made for another one."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError("adapter needs peft: pip install 'emolake[tune]'") from None

    if not (folder / _CONFIG).exists():
        raise UserError(f"{folder} is no adapter: it holds no {_CONFIG}")
    told = read_json(folder / _CONFIG)
    revision = content_of(model_revision(model_path(base)))
    if told.get("revision") not in (None, revision):
        raise UserError(
            f"{folder} adapts {told.get('base_model_name_or_path')} of revision {told['revision']}; "
            f"{base} has revision {revision}"
        )
    try:
        network.language = PeftModel.from_pretrained(network.language, str(folder))  # type: ignore[assignment]
        network.language = network.language.merge_and_unload()  # type: ignore[operator]
        if (folder / _FULL).exists():
            full = load_file(folder / _FULL)
            found = network.load_state_dict(full, strict=False)
            if found.unexpected_keys:
                raise ValueError(f"{found.unexpected_keys[0]} is no part of it")
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{folder} does not fit {base}: {in_a_line(error, 200)}") from None
    return network


def _full(network: EmoLlama) -> tuple[str, ...]:
    """The parts that are trained in full beside the adapter."""
    return (*_PROJECTIONS, *(("face_info",) if network.face_info is not None else ()))
