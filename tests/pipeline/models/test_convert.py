"""Published layouts become model folders that compute the same; what does not fit is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emolake.jobs.cli import main
from emolake.pipeline.errors import UserError
from emolake.pipeline.models.catalog import model_revision, read_config, weight_files
from emolake.pipeline.models.convert import Sources, convert
from emolake.pipeline.models.families import PUBLISHED, from_published
from emolake.pipeline.models.folder import load_network
from emolake.pipeline.models.golden.cases import read_json
from emolake.pipeline.models.prompts import train_tokenizer

TOWER = "model.vision_tower.vision_tower."


def sharded(folder: Path, tensors: dict[str, Tensor], shards: int = 2) -> None:
    """As the hub has it: pytorch_model-*.bin with an index."""
    names = sorted(tensors)
    index = {}
    for k in range(shards):
        file = f"pytorch_model-{k + 1:05}-of-{shards:05}.bin"
        part = names[k::shards]
        torch.save({n: tensors[n].clone() for n in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def published(golden: Path, case: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A folder with config and tokenizer as published, and the case's tensors."""
    folder.mkdir(parents=True)
    shutil.copy(golden / case / "config.json", folder)
    train_tokenizer(["a face"], 300).save(str(folder / "tokenizer.json"))
    return folder, load_file(golden / case / "weights.safetensors")


def same(folder: Path, golden: Path, case: str) -> None:
    """The converted folder's parameters are those of the case loaded directly."""
    told = read_json(golden / case / "config.json")
    weights = load_file(golden / case / "weights.safetensors")
    wanted = from_published(told["family"], told, weights).state_dict()
    config = read_config(folder)
    network = load_network(folder, lambda: PUBLISHED[told["family"]].network(config), "cpu")
    ours = network.state_dict()
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_llama_vid_with_its_tower_in_a_file_of_its_own(golden: Path, tmp_path: Path) -> None:
    source, weights = published(golden, "llamavid_a", tmp_path / "llama-vid-7b")
    tower = {n.removeprefix(TOWER): t for n, t in weights.items() if n.startswith(TOWER)}
    width = tower["cls_token"].shape[-1]
    # EVA's file has a block more than serves, and a norm and a head that nobody reads.
    extra = {n.replace("blocks.0.", "blocks.7."): t for n, t in tower.items() if "blocks.0." in n}
    unused = {"norm.weight": torch.ones(width), "head.weight": torch.ones(9, width)}
    torch.save(tower | extra | unused, tmp_path / "eva_vit_g.pth")
    sharded(source, {n: t for n, t in weights.items() if not n.startswith(TOWER)})
    output = tmp_path / "ours"
    code = main(
        [
            *("models", "convert", "--family", "llama-vid", str(source)),
            *("--vision", str(tmp_path / "eva_vit_g.pth"), "--output", str(output)),
        ]
    )
    assert code == 0
    same(output, golden, "llamavid_a")
    assert len(model_revision(output)) == 12


def test_emola_from_base_adapter_and_projectors(golden: Path, tmp_path: Path) -> None:
    base, weights = published(golden, "emola_a", tmp_path / "llava-v1.5-7b")
    clip = {n.removeprefix(TOWER): t for n, t in weights.items() if n.startswith(TOWER)}
    torch.save(clip | {"text_model.x": torch.ones(1)}, tmp_path / "clip.bin")
    query = "model.layers.0.self_attn.q_proj"
    size = weights[f"{query}.weight"].shape[0]
    low, high = torch.randn(4, size), torch.randn(size, 4)
    adapter = tmp_path / "emola"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    pair = {
        f"base_model.model.{query}.lora_A.weight": low,
        f"base_model.model.{query}.lora_B.weight": high,
    }
    torch.save(pair, adapter / "adapter_model.bin")
    projector = {n: t for n, t in weights.items() if "mm_projector" in n}
    trained = {f"base_model.model.{n}": t for n, t in projector.items()}
    torch.save(trained, adapter / "non_lora_trainables.bin")
    landmark = {n: t for n, t in weights.items() if "landmark_feature_projector" in n}
    torch.save(landmark, adapter / "landmark_feature_projector.bin")
    rest = {
        n: t for n, t in weights.items() if n not in landmark and not n.startswith(TOWER)
    }  # fmt: skip
    # The base as it was before the adapter: what is merged is the case again.
    rest[f"{query}.weight"] = rest[f"{query}.weight"] - 8 / 4 * (high @ low)
    rest |= {n: torch.zeros_like(t) for n, t in projector.items()}
    sharded(base, rest)
    convert("emola", Sources(adapter, base, tmp_path / "clip.bin"), tmp_path / "ours")
    same(tmp_path / "ours", golden, "emola_a")


def test_emotion_llama_from_a_checkpoint_of_trained_parts(golden: Path, tmp_path: Path) -> None:
    base, weights = published(golden, "emotion_llama_a", tmp_path / "Llama-2-7b-chat-hf")
    prefix = "llama_model.base_model.model."
    language = {n: t for n, t in weights.items() if n.startswith(prefix)}
    lora = {n.replace(".default", ""): t for n, t in language.items() if "lora_" in n}
    plain = {
        n.removeprefix(prefix).replace(".base_layer", ""): t
        for n, t in language.items()
        if "lora_" not in n
    }
    sharded(base, plain)
    tower = {n: t for n, t in weights.items() if n.startswith("visual_encoder.")}
    bare = {n.removeprefix("visual_encoder."): t for n, t in tower.items()}
    torch.save(bare, tmp_path / "eva_vit_g.pth")
    rest = {n: t for n, t in weights.items() if n not in tower and n not in language}
    torch.save({"model": rest | lora}, tmp_path / "checkpoint.pth")
    sources = Sources(tmp_path / "checkpoint.pth", base, tmp_path / "eva_vit_g.pth")
    convert("emotion-llama", sources, tmp_path / "ours")
    same(tmp_path / "ours", golden, "emotion_llama_a")


def test_the_published_7b_layout_by_name(tmp_path: Path) -> None:
    """Every tensor of llama-vid-7b-full-224 by name and in number, in tiny widths."""
    width, vision, text, ffn = 8, 4, 4, 8
    shape: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (32, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (32, width),
        "model.vlm_att_query": (1, 32, text),
        "model.mm_projector.0.weight": (width, vision),
        "model.mm_projector.0.bias": (width,),
        "model.mm_projector.2.weight": (width, width),
        "model.mm_projector.2.bias": (width,),
        TOWER + "cls_token": (1, 1, vision),
        TOWER + "pos_embed": (1, 257, vision),
        TOWER + "patch_embed.proj.weight": (vision, 3, 14, 14),
        TOWER + "patch_embed.proj.bias": (vision,),
    }
    for name, out, inner in (
        ("vlm_att_projector", vision, text),
        ("vlm_att_key_projector", vision, vision),
        ("vlm_att_val_projector", width, vision),
    ):
        shape |= {f"model.{name}.weight": (out, inner), f"model.{name}.bias": (out,)}
    shape |= dict.fromkeys(("model.vlm_att_ln.weight", "model.vlm_att_ln.bias"), (vision,))
    for k in range(32):
        layer = f"model.layers.{k}."
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shape[f"{layer}self_attn.{part}.weight"] = (width, width)
        shape |= dict.fromkeys(
            (f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight"), (12, width)
        )
        shape[f"{layer}mlp.down_proj.weight"] = (width, 12)
        norms = (f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight")
        shape |= dict.fromkeys(norms, (width,))
        shape[f"{layer}self_attn.rotary_emb.inv_freq"] = (2,)
    for k in range(40):
        block = f"{TOWER}blocks.{k}."
        for part in ("norm1", "norm2"):
            shape |= {f"{block}{part}.weight": (vision,), f"{block}{part}.bias": (vision,)}
        shape |= {f"{block}attn.q_bias": (vision,), f"{block}attn.v_bias": (vision,)}
        for part, out, inner in (
            *(("attn.proj", vision, vision), ("mlp.fc1", ffn, vision), ("mlp.fc2", vision, ffn)),
        ):
            shape |= {f"{block}{part}.weight": (out, inner), f"{block}{part}.bias": (out,)}
        shape[f"{block}attn.qkv.weight"] = (3 * vision, vision)
    bert = "model.vlm_att_encoder.bert."
    shape |= {
        f"{bert}embeddings.word_embeddings.weight": (30523, text),
        f"{bert}embeddings.position_embeddings.weight": (512, text),
        f"{bert}embeddings.position_ids": (1, 512),
    }
    norms = [f"{bert}embeddings.LayerNorm"]
    for k in range(12):
        layer = f"{bert}encoder.layer.{k}."
        sides = ["attention"] + (["crossattention"] if k % 2 == 0 else [])
        for side in sides:
            for part in ("query", "key", "value"):
                seen = vision if side == "crossattention" and part != "query" else text
                shape |= {
                    f"{layer}{side}.self.{part}.weight": (text, seen),
                    f"{layer}{side}.self.{part}.bias": (text,),
                }
            shape |= {
                f"{layer}{side}.output.dense.weight": (text, text),
                f"{layer}{side}.output.dense.bias": (text,),
            }
            norms.append(f"{layer}{side}.output.LayerNorm")
        for end in ("", "_query"):
            shape |= {
                f"{layer}intermediate{end}.dense.weight": (ffn, text),
                f"{layer}intermediate{end}.dense.bias": (ffn,),
                f"{layer}output{end}.dense.weight": (text, ffn),
                f"{layer}output{end}.dense.bias": (text,),
            }
            norms.append(f"{layer}output{end}.LayerNorm")
    for name in norms:
        shape |= {f"{name}.weight": (text,), f"{name}.bias": (text,)}
    source = tmp_path / "llama-vid-7b-full-224-video-fps-1"
    source.mkdir()
    config: dict[str, Any] = {
        "model_type": "llava", "hidden_size": width, "intermediate_size": 12, "vocab_size": 32,
        "num_hidden_layers": 32, "num_attention_heads": 2, "rms_norm_eps": 1e-5,
        "mm_hidden_size": vision, "mm_projector_type": "mlp2x_gelu", "num_query": 32,
        "mm_vision_select_feature": "patch", "bert_type": "qformer_pretrain", "compress_type": "mean",
        "vision_heads": 2, "vision_mlp_hidden": ffn, "qformer_heads": 2,
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(config))
    train_tokenizer(["a face"], 300).save(str(source / "tokenizer.json"))
    sharded(source, {n: torch.randn(s).half() for n, s in shape.items()}, shards=2)
    made = convert("llama-vid", Sources(source), tmp_path / "ours")
    folder = read_config(tmp_path / "ours")
    network = load_network(tmp_path / "ours", lambda: PUBLISHED["llama-vid"].network(folder), "cpu")
    assert made.tensors == len(network.state_dict())
    assert not any(p.is_meta for p in network.parameters())


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_what_does_not_fit_is_named_and_nothing_is_written(
    golden: Path, tmp_path: Path, change: str
) -> None:
    source, weights = published(golden, "llamavid_a", tmp_path / "source")
    name = "model.vlm_att_ln.bias"
    if change == "missing":
        del weights[name]
    elif change == "extra":
        weights["model.surprise.weight"] = torch.ones(1)
    else:
        weights[name] = torch.ones(3)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UserError, match="surprise" if change == "extra" else "post_layernorm.bias"):
        convert("llama-vid", Sources(source), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_adapter_of_another_base_is_refused(golden: Path, tmp_path: Path) -> None:
    base, weights = published(golden, "emotion_llama_a", tmp_path / "base")
    prefix = "llama_model.base_model.model."
    plain = {
        n.removeprefix(prefix).replace(".base_layer", ""): t
        for n, t in weights.items()
        if n.startswith(prefix) and "lora_" not in n
    }
    save_file(plain, base / "model.safetensors")
    wide = {n: torch.ones(4, 999) if ".lora_A." in n else t for n, t in weights.items()}
    torch.save({"model": {n: t for n, t in wide.items() if n not in plain}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="adapter of another base model"):
        convert("emotion-llama", Sources(tmp_path / "c.pth", base), tmp_path / "ours")


def test_a_pickle_that_is_no_state_dict_never_runs(tmp_path: Path, golden: Path) -> None:
    source, _ = published(golden, "llamavid_a", tmp_path / "source")

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"x": Trap()}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a checkpoint of tensors"):
        convert("llama-vid", Sources(source), tmp_path / "ours")
    assert not (tmp_path / "sprung").exists()


def test_a_shard_that_went_is_named(golden: Path, tmp_path: Path) -> None:
    source, weights = published(golden, "llamavid_a", tmp_path / "source")
    save_file(weights, source / "model.safetensors")
    convert("llama-vid", Sources(source), tmp_path / "ours")
    weight_files(tmp_path / "ours")[0].unlink()
    with pytest.raises(UserError, match="is not there"):
        weight_files(tmp_path / "ours")
