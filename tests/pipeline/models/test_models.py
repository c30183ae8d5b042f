import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import LABEL_SETS
from emolake.pipeline.models.config import (
    EmoLlamaConfig,
    FaceInfoConfig,
    LanguageConfig,
    QFormerConfig,
    VisionConfig,
)
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.golden import verify
from emolake.pipeline.models.golden.cases import TOLERANCE
from emolake.pipeline.models.prompts import (
    IMAGE_TOKEN,
    Prompter,
    attribute_sentence,
    train_tokenizer,
)
from emolake.pipeline.models.published import resized_positions
from emolake.pipeline.models.scoring import (
    LabelTrie,
    Prefill,
    SharedPrefix,
    sequence_log_probabilities,
)


def small_config(**changes: object) -> EmoLlamaConfig:
    fields = {
        "vision": VisionConfig(
            kind="conv_vit", image_size=32, patch_size=8, width=32, depth=1, heads=2,
            mlp_hidden=64, stem_channels=(32, 16, 16),
        ),
        "qformer": QFormerConfig(
            vocab_size=400, width=32, depth=2, heads=2, mlp_hidden=64, max_positions=256, num_query=3
        ),
        "language": LanguageConfig(vocab_size=400, width=32, depth=2, heads=2, mlp_hidden=64),
        "face_info": FaceInfoConfig(global_dim=16, num_queries=4, width=32, heads=2),
    }  # fmt: skip
    return EmoLlamaConfig(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> EmoLlama:
    torch.manual_seed(0)
    return EmoLlama(small_config()).eval()


LLAMA_VID = {"vision_features", "qformer_output", "frame_tokens"}
STAGES = {
    "llamavid_a": LLAMA_VID,
    "llamavid_b": LLAMA_VID,
    "emola_a": {"vision_features", "landmark_token"},
    "emotion_llama_a": {"multimodal_tokens"},
}


@pytest.mark.parametrize("case", list(STAGES))
def test_published_checkpoints_compute_what_the_reference_computed(golden, case: str) -> None:
    checks = {check.stage: check for check in verify(golden / case)}
    assert set(checks) == STAGES[case] | {"inputs_embeds", "logits", "greedy_ids"}
    for check in checks.values():
        assert check.ok, check
        assert check.difference <= TOLERANCE


def test_a_changed_weight_is_noticed(golden, tmp_path) -> None:
    case = shutil.copytree(golden / "llamavid_a", tmp_path / "case")
    weights = load_file(case / "weights.safetensors")
    weights["model.vlm_att_ln.bias"] = weights["model.vlm_att_ln.bias"] + 0.1
    save_file(weights, tmp_path / "w")
    shutil.move(tmp_path / "w", case / "weights.safetensors")
    failed = {check.stage for check in verify(case) if not check.ok}
    assert "qformer_output" in failed
    assert "vision_features" not in failed


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_weights_that_do_not_fit_are_refused_by_name(golden, tmp_path, change: str) -> None:
    case = shutil.copytree(golden / "llamavid_b", tmp_path / "case")
    weights = load_file(case / "weights.safetensors")
    name = "model.vlm_att_val_projector.weight"
    if change == "missing":
        del weights[name]
    elif change == "extra":
        weights["model.surprise"] = torch.zeros(1)
    else:
        weights[name] = weights[name][:-1].clone()
    save_file(weights, tmp_path / "w")
    shutil.move(tmp_path / "w", case / "weights.safetensors")
    named = "model.surprise" if change == "extra" else "value_projection.weight"
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        verify(case)


def test_positions_keep_the_class_token_and_resize_the_grid() -> None:
    table = torch.randn(1, 1 + 16, 8)
    assert resized_positions(table, 4) is table
    larger = resized_positions(table, 6)
    assert larger.shape == (1, 37, 8)
    assert torch.equal(larger[:, 0], table[:, 0])


def test_label_scores_equal_one_forward_per_label(model: EmoLlama) -> None:
    tokenizer = train_tokenizer(["nothing of the labels"], 300)
    prompt = Prompter(tokenizer, tokenizer, 64).emotion(LABEL_SETS["mafw"])
    trie = LabelTrie.of(prompt.labels)
    assert trie.inner, "labels of several tokens are what is tested here"
    with torch.inference_mode():
        embeds = model.splice(torch.tensor(prompt.ids), torch.randn(3, 10, 32))
        prefill = Prefill(model.language, embeds)
        ours = prefill.sequence_log_probabilities(trie)
        at_once = sequence_log_probabilities(model.language, embeds, trie)
        torch.testing.assert_close(at_once, ours, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prefill.sequence_log_probabilities(trie), ours)
        prefix = SharedPrefix(model.language, embeds[:1, : prompt.ids.index(IMAGE_TOKEN)])
        for _ in range(2):
            shared = Prefill(model.language, embeds, prefix).sequence_log_probabilities(trie)
            torch.testing.assert_close(shared, ours, atol=1e-4, rtol=1e-5)
        for column, label in enumerate(prompt.labels):
            ids = torch.tensor(label).expand(3, -1)
            read = model.language.get_input_embeddings()(ids)
            logits = model.language(inputs_embeds=torch.cat([embeds, read], 1)).logits
            steps = logits.log_softmax(-1)[:, embeds.shape[1] - 1 : -1]
            naive = steps.gather(2, ids[..., None])[..., 0].sum(1)
            torch.testing.assert_close(ours[:, column], naive, atol=1e-4, rtol=1e-5)


def test_answers_written_together_are_those_written_alone(model: EmoLlama) -> None:
    torch.manual_seed(3)
    embeds = torch.randn(6, 12, 32) * 3
    with torch.inference_mode():
        prefix = SharedPrefix(model.language, embeds[:1, :5])
        embeds[:, :5] = embeds[:1, :5]
        alone = []
        for row in embeds:
            ids, read = [], row[None]
            for _ in range(8):
                ids.append(int(model.language(inputs_embeds=read).logits[0, -1].argmax()))
                token = model.language.get_input_embeddings()(torch.tensor([[ids[-1]]]))
                read = torch.cat([read, token], 1)
            alone.append(ids)
        stop = alone[2][3]  # one row ends in the middle, others go on
        ended = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in alone]
        assert len({len(ids) for ids in ended}) > 1
        prefill = Prefill(model.language, embeds, prefix)
        prefill.label_log_probabilities(LabelTrie.of(((1, 2), (1, 3), (4,))))
        assert prefill.written(8, stop) == ended
        assert Prefill(model.language, embeds).written(8) == alone


def test_face_tokens_follow_the_frame_tokens(model: EmoLlama) -> None:
    frames = torch.randn(2, 5, 2, 32)
    tokens = model.visual_tokens(frames, torch.randn(2, 5, 16), torch.rand(2, 5, 5, 2))
    assert tokens.shape == (2, 5 * 2 + 4, 32)
    torch.testing.assert_close(tokens[:, :10], frames.flatten(1, 2))


def test_the_order_of_frames_matters_to_face_info(model: EmoLlama) -> None:
    frames, features = torch.randn(1, 4, 2, 32), torch.randn(1, 4, 16)
    landmarks = torch.rand(1, 4, 5, 2)
    forward = model.visual_tokens(frames, features, landmarks)[:, 8:]
    backward = model.visual_tokens(frames.flip(1), features.flip(1), landmarks.flip(1))[:, 8:]
    assert (forward - backward).abs().max() > 1e-4


@pytest.mark.parametrize(("size", "seen"), [(28, 4), (42, 10)])
def test_the_class_token_is_dropped_of_an_odd_number_of_tokens_alone(size: int, seen: int) -> None:
    config = small_config()
    vision = VisionConfig(
        image_size=size, patch_size=14, width=32, depth=1, heads=2, mlp_hidden=64
    )  # fmt: skip
    model = EmoLlama(config.model_copy(update={"vision": vision, "face_info": None}))
    given = []
    model.key_projection.register_forward_hook(lambda _, inputs, __: given.append(inputs[0].shape))
    model.encode_frames(torch.zeros(1, 3, size, size), torch.ones(3, dtype=torch.long))
    assert given[0][1] == seen


def test_a_grid_of_tokens_needs_patches_that_make_one() -> None:
    told = {"vision": {"image_size": 70, "patch_size": 14}, "compress_type": "grid:2"}
    with pytest.raises(ValueError, match="no square"):
        EmoLlamaConfig.model_validate(told)


def test_without_face_info_the_model_is_llama_vid() -> None:
    plain = EmoLlama(small_config(face_info=None))
    frames = torch.randn(1, 3, 2, 32)
    torch.testing.assert_close(plain.visual_tokens(frames, None, None), frames.flatten(1, 2))


def test_prompt_has_one_image_place_and_names_the_labels() -> None:
    tokenizer = train_tokenizer(["What emotion does this face show?"], 300)
    prompter = Prompter(tokenizer, tokenizer, 64)
    prompt = prompter.emotion(("anger", "fear"), {"age": "20-29", "race": "Asian"})
    assert prompt.ids.count(IMAGE_TOKEN) == 1
    text = tokenizer.decode([i for i in prompt.ids if i != IMAGE_TOKEN])
    assert "age 20-29, race Asian" in text
    assert text.endswith("Answer with one word of: anger, fear. ASSISTANT:")
    assert tokenizer.decode(list(prompt.labels[1])) == " fear"
    assert attribute_sentence({}) == ""
    assert len(prompt.question) <= 64
