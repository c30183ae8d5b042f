"""Tiny models of the sister systems with random weights, as folders that `--model` takes."""

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    HubertConfig,
    HubertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    VideoMAEConfig,
    VideoMAEModel,
    ViTMAEConfig,
    ViTMAEModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from emolake.pipeline.models.catalog import CONFIG, TOKENIZER, WEIGHTS
from emolake.pipeline.models.config import (
    ClipConfig,
    EmolaConfig,
    EmotionLlamaConfig,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
)
from emolake.pipeline.models.emola import Emola
from emolake.pipeline.models.emotion_llama import EmotionLlama
from emolake.pipeline.models.prompts import train_tokenizer

LANGUAGE = LanguageConfig(vocab_size=400, width=32, depth=2, heads=2, mlp_hidden=64)
LANDMARK_DIM = 24


def save_random(folder: Path, config: ModelConfig, network: nn.Module) -> Path:
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(config.model_dump_json())
    train_tokenizer(["happiness sadness anger fear disgust surprise neutral AU12."], 390).save(
        str(folder / TOKENIZER)
    )
    return folder


def random_emola(folder: Path) -> Path:
    torch.manual_seed(0)
    config = EmolaConfig(
        name="random-emola",
        trained=False,
        vision=ClipConfig(image_size=56, patch_size=14, width=32, depth=3, heads=2, mlp_hidden=64),
        language=LANGUAGE,
        landmark_dim=LANDMARK_DIM,
    )
    return save_random(folder, config, Emola(config))


FEATURE_DIM = 32


def random_emotion_llama(folder: Path) -> Path:
    torch.manual_seed(0)
    config = EmotionLlamaConfig(
        name="random-emotion-llama",
        trained=False,
        vision=VisionConfig(
            image_size=56, patch_size=14, width=32, depth=2, heads=2, mlp_hidden=64
        ),
        language=LANGUAGE,
        feature_dim=FEATURE_DIM,
        face_size=32,
    )
    return save_random(folder, config, EmotionLlama(config))


def random_encoders(folder: Path) -> dict[str, str]:
    """Folders of tiny ViTMAE, VideoMAE and HuBERT, by the options that name them."""
    torch.manual_seed(0)
    size = {
        "hidden_size": FEATURE_DIM, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 48,
    }  # fmt: skip
    decoder = {
        "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }  # fmt: skip
    picture = {"image_size": 32, "patch_size": 16}
    models = {
        "face_mae": ViTMAEModel(ViTMAEConfig(**size, **decoder, **picture)),
        "video_mae": VideoMAEModel(
            VideoMAEConfig(**size, **decoder, **picture, num_frames=4, tubelet_size=2)
        ),
        "audio_encoder": HubertModel(
            HubertConfig(
                **size,
                conv_dim=(16,) * 7,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=2,
                feat_proj_layer_norm=False,
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def random_text_model(folder: Path, *, seq2seq: bool = False, kind: str | None = None) -> Path:
    """As the hub has a text model: LLaMA's or T5's classes, or those of `kind`, and a tokenizer."""
    torch.manual_seed(0)
    plain = train_tokenizer(["joy, love, optimism 0.5 -3: neutral or no emotion"], 390)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    heads = {"decoder_start_token_id": 2, **ids}
    match kind or ("t5" if seq2seq else "llama"):
        case "t5":
            model = T5ForConditionalGeneration(
                T5Config(
                    vocab_size=400, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, **heads
                )
            )
        case "bart":
            model = BartForConditionalGeneration(
                BartConfig(
                    vocab_size=400, d_model=32, encoder_layers=2, decoder_layers=2,
                    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
                    decoder_ffn_dim=48, **heads,
                )
            )  # fmt: skip
        case "opt":
            model = OPTForCausalLM(
                OPTConfig(
                    vocab_size=400, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
                    num_attention_heads=2, word_embed_proj_dim=32, **ids,
                )
            )  # fmt: skip
        case "bloom":
            model = BloomForCausalLM(
                BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2, **ids)
            )
        case "mistral":
            model = MistralForCausalLM(
                MistralConfig(
                    vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2, sliding_window=8, **ids,
                )
            )  # fmt: skip
        case _:
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=2, **ids,
                )
            )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def random_whisper(folder: Path) -> Path:
    """Whisper's classes and the special tokens that its timestamps need; it speaks nonsense."""
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: k for k, letter in enumerate(letters)} | {"<|endoftext|>": len(letters)}
    tokenizer = WhisperTokenizerFast(vocab=vocab, merges=[])
    named = (
        *("startoftranscript", "en", "translate", "transcribe", "startoflm", "startofprev"),
        *("nospeech", "notimestamps", *(f"{k * 0.02:.2f}" for k in range(1501))),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in named]})
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, decoder_start_token_id=start, max_target_positions=64, **ids,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, max_length=24, return_timestamps=True, is_multilingual=False,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        alignment_heads=[[0, 0]], max_initial_timestamp_index=50, **ids,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def landmark_network(path: Path, dim: int = LANDMARK_DIM) -> Path:
    """In the place of 2d106det: mean colours through a random matrix."""
    torch.manual_seed(1)
    matrix = helper.make_tensor("w", TensorProto.FLOAT, [3, dim], torch.randn(3 * dim).tolist())
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["data"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["fc1"]),
        ],
        "landmarks",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 192, 192])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, dim])],
        [matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path
