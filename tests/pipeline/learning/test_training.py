import base64
import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.metrics import classification_scores
from emolake.pipeline.faces.align import MIRRORED_POINTS
from emolake.pipeline.learning.adapter import merge_adapter
from emolake.pipeline.learning.augment import STILL, augmented_clips
from emolake.pipeline.learning.batches import Batch, augmented_batches, plain_batches
from emolake.pipeline.learning.config import TuneConfig
from emolake.pipeline.learning.examples import (
    RESOLUTION,
    Examples,
    FindFaces,
    canvas_spec,
    pictures_here,
    read_examples,
)
from emolake.pipeline.learning.instruct import InstructionTuner
from emolake.pipeline.learning.loop import StageConfig, _autocast, train_stage
from emolake.pipeline.learning.parallel import Team
from emolake.pipeline.learning.stem import StemClassifier, soft_cross_entropy
from emolake.pipeline.learning.tune import fit_temperature, prepare, tune
from emolake.pipeline.models.catalog import DEFAULT_MODEL
from emolake.pipeline.models.config import EmoLlamaConfig, FaceInfoConfig, VisionConfig
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.folder import load_model
from emolake.pipeline.models.prompts import Prompter, Told, train_tokenizer
from tests.pipeline.models.test_models import small_config

LABELS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
TWO = ("happiness", "surprise")


@pytest.fixture(scope="module")
def faces(fer2013, tmp_path_factory) -> Examples:
    """A few hundred real faces, happy and surprised."""
    folder = tmp_path_factory.mktemp("faces")
    table = pq.read_table(fer2013 / "fer2013_valid.parquet", columns=["image", "label"])
    wanted = [
        i for i, label in enumerate(table["label"].to_pylist()) if label in ("happy", "surprise")
    ]
    pq.write_table(table.take(wanted[:400]), folder / "few.parquet")
    return examples(folder / "few.parquet", folder)


def examples(table: Path, folder: Path, find: FindFaces = pictures_here) -> Examples:
    return read_examples(
        str(table),
        TWO,
        config().crop,
        grayscale=True,
        frames=8,
        cache=folder,
        find=find,
        log=lambda _: None,
    )


def config() -> EmoLlamaConfig:
    # torch 2.13 on some AMD processors dies in the gradient of a strided 1x1 convolution of 8 channels.
    vision = VisionConfig(kind="conv_vit", image_size=48, patch_size=8, stem_channels=(32, 32, 32))
    return EmoLlamaConfig(vision=vision)


def split(faces: Examples) -> tuple[Examples, Examples]:
    return faces.select(np.arange(300)), faces.select(np.arange(300, 400))


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "stem-metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines)]


def train(faces: Examples, folder: Path, stop_after: int | None = None) -> float:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    stage = StageConfig(
        name="stem", trains="stem", epochs=8, batch_size=20, class_balance=1, warmup_steps=5,
        learning_rate=2e-3, label_smoothing=0.0, ema_decay=0.9, precision="float32", checkpoint_steps=4,
    )  # fmt: skip
    epochs = 0

    def log(_line: str) -> None:
        nonlocal epochs
        epochs += 1
        if stop_after is not None and epochs == stop_after:
            raise KeyboardInterrupt

    module = StemClassifier(config(), len(TWO))
    return train_stage(
        module, *split(faces), stage, seed=3, folder=folder, team=Team.here(), log=log
    ).uar


def test_a_killed_training_goes_on_with_the_same_losses_and_learns(faces, tmp_path) -> None:
    recall = train(faces, tmp_path / "whole")
    assert recall > 0.65, "happy against surprised is easy; chance is 0.5"
    with pytest.raises(KeyboardInterrupt):
        train(faces, tmp_path / "killed", stop_after=3)
    assert train(faces, tmp_path / "killed") == recall
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_few_steps_warm_up_for_a_tenth_of_them(faces, tmp_path) -> None:
    stage = StageConfig(name="stem", trains="stem", epochs=2, batch_size=4, size=16)
    few = faces.select(np.arange(40))
    module = StemClassifier(config(), len(TWO))
    team = Team.here()
    train_stage(module, few, few, stage, seed=0, folder=tmp_path, team=team, log=lambda _: None)
    lines = (tmp_path / "stem-metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert (len(rates), rates.index(max(rates))) == (20, 1)
    assert max(rates) == stage.learning_rate


def test_no_cpu_imitates_bfloat16_unasked(monkeypatch) -> None:
    cpu = torch.device("cpu")
    for able in ({}, {"avx512_bf16": False}, {"avx512_bf16": True}, {"amx_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        with _autocast(cpu, None):
            assert torch.is_autocast_enabled("cpu") is any(able.values())
        with _autocast(cpu, "bfloat16"):
            assert torch.is_autocast_enabled("cpu")


def test_the_plain_view_has_the_landmarks_on_the_template(faces) -> None:
    (batch,) = plain_batches(faces.select(np.arange(50)), 48)
    clips = batch.clips
    assert clips.pixels.shape == (50, 1, 1, 48, 48)
    template = (config().crop.template() + 0.5) / 48
    median = np.median(clips.landmarks[:, 0].numpy(), axis=0)
    np.testing.assert_allclose(median, template, atol=0.03)


def test_landmarks_move_with_the_augmented_picture() -> None:
    side, size = canvas_spec(config().crop).size, 48
    points = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    points = points * size * RESOLUTION + side / 6
    canvas = torch.zeros(1, 1, 1, side, side, dtype=torch.uint8)
    x, y = points[2]
    canvas[0, 0, 0, round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] = 255
    landmarks = torch.from_numpy(points[None, None].astype(np.float32))
    calm = replace(STILL, rotation=math.radians(15), log_scale=0.15, shift=0.08, frame_motion=0.2)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        clips = augmented_clips(canvas, landmarks, 4, size, generator, calm)
        for t in range(4):
            spot = clips.pixels[0, t, 0]
            ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
            centre = torch.stack([(spot * xs).sum(), (spot * ys).sum()]) / spot.sum()
            told = clips.landmarks[0, t, 2] * size - 0.5
            assert (centre - told).abs().max() < 0.7
            left_eye, right_eye = clips.landmarks[0, t, 0], clips.landmarks[0, t, 1]
            assert left_eye[0] < right_eye[0], "a mirrored face keeps the order of its points"
    assert sorted(MIRRORED_POINTS) == [0, 1, 2, 3, 4]


def test_the_same_seed_makes_the_same_clips(faces) -> None:
    few = faces.select(np.arange(8))
    made = []
    for seed in (1, 1, 2):
        (batch,) = augmented_batches(few, 3, 48, torch.Generator().manual_seed(seed))
        made.append(batch.clips.pixels)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_speaking_mouth_opens_below_its_line_and_leaves_the_eyes_alone(faces) -> None:
    canvas = torch.from_numpy(np.array(faces.canvas[:16])).permute(0, 3, 1, 2)[:, None]
    points = torch.from_numpy(faces.landmarks[:16])[:, None]
    # One seed: the same faces mirrored in both.
    quiet, speaking = (
        augmented_clips(
            canvas, points, 8, 48, torch.Generator().manual_seed(1), replace(STILL, speak=speak)
        ).pixels
        for speak in (0.0, 1.0)
    )
    change = (quiet - speaking).abs().mean((1, 2))  # (B, S, S)
    assert change[:, 28:].mean() > 10 * change[:, :20].mean(), "the lower face alone moves"
    apart = (speaking[:, 1:] - speaking[:, :-1]).abs().mean((0, 1, 2))
    assert apart[30:].mean() > 3 * apart[:20].mean(), "and moves from frame to frame"


def test_films_spoil_faces_in_every_way_and_reproducibly(faces) -> None:
    canvas = torch.from_numpy(np.array(faces.canvas[:8])).permute(0, 3, 1, 2)[:, None]
    points = torch.from_numpy(faces.landmarks[:8])[:, None]

    def view(seed: int, **jitter: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return augmented_clips(canvas, points, 2, 48, generator, replace(STILL, **jitter)).pixels

    plain = view(0)
    for kind in ("blur", "shrink", "noise", "compress", "erase"):
        spoilt = view(0, **{kind: 1.0})
        assert (spoilt - plain).abs().mean((1, 2, 3, 4)).median() > 1e-3, kind
        assert spoilt.min() >= 0, kind
        assert spoilt.max() <= 1, kind
        assert torch.equal(spoilt, view(0, **{kind: 1.0})), kind


def test_mixing_keeps_what_people_saw_in_step_with_what_is_shown(faces) -> None:
    few = faces.select(np.arange(16))
    (plain,), (mixed,) = (
        augmented_batches(few, 1, 48, torch.Generator().manual_seed(4), mixup)
        for mixup in (0.0, 1.0)
    )
    torch.testing.assert_close(mixed.shares.sum(1), torch.ones(16))
    assert torch.equal(mixed.shares.argmax(1), plain.shares.argmax(1)), (
        "its own label is most of it"
    )
    assert 0 < (mixed.shares != plain.shares).any(1).sum() < 16, "faces of one label stay pure"
    assert not torch.equal(mixed.clips.pixels, plain.clips.pixels)
    assert torch.equal(mixed.clips.landmarks, plain.clips.landmarks)


def test_votes_are_what_is_learnt_and_those_outside_the_set_are_told(tables, tmp_path) -> None:
    pictures = pq.read_table(tables[0])["image"].to_pylist()[:4]
    names = ["Happy", "surprised", "contempt"]
    votes = [[0.8, 0.2, 0.0], [0.3, 0.2, 0.5], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]]
    listed = pa.table(
        {"image": pictures, "votes": votes}, metadata={"votes_order": ",".join(names)}
    )
    structs = pa.table(
        {"image": pictures, "votes": [dict(zip(names, row, strict=True)) for row in votes]}
    )
    for name, table in (("lists", listed), ("structs", structs)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        lines: list[str] = []
        made = read_examples(
            str(tmp_path / f"{name}.parquet"), TWO, config().crop, grayscale=True, frames=8,
            cache=tmp_path, find=pictures_here, log=lines.append,
        )  # fmt: skip
        np.testing.assert_allclose(made.shares, [[0.8, 0.2], [0.6, 0.4], [0, 1]], atol=1e-6)
        assert made.labels.tolist() == [0, 0, 1]
        assert made.skipped == {"unknown_label": 1}
        assert any("outside the set: 16.67 %" in line for line in lines)
    nameless = tmp_path / "nameless.parquet"
    pq.write_table(listed.replace_schema_metadata(None), nameless)
    with pytest.raises(UserError, match="votes_order"):
        examples(nameless, tmp_path)


def test_of_several_faces_the_one_that_was_labelled_is_learnt_from(tables, tmp_path) -> None:
    picture = pq.read_table(tables[0])["image"].to_pylist()[0]
    boxes = [{"x1": x, "y1": 0.1, "x2": x + 0.2, "y2": 0.4} for x in (0.1, 0.6)]
    told = {"image": [picture] * 3, "label": ["happy"] * 3, "bbox": [*boxes, None]}
    pq.write_table(pa.table(told), tmp_path / "two.parquet")

    def two_faces(table, needs, frames):
        for row, found in pictures_here(table, needs, frames):
            (window,) = found["windows"]
            shown = [
                window | {"bbox": box, "track_id": k, "features": [[float(k)] * 256]}
                for k, box in enumerate(boxes)
            ]
            yield row, found | {"windows": shown}

    made = examples(tmp_path / "two.parquet", tmp_path, two_faces)
    assert [float(made.features[first].max()) for first in made.first] == [0.0, 1.0, 0.0]


def test_the_loss_against_votes_is_least_where_the_model_says_what_people_saw() -> None:
    shares = torch.tensor([[0.7, 0.3], [0.0, 0.0]])
    even = torch.ones(2)

    def loss(told: float) -> torch.Tensor:
        return soft_cross_entropy(torch.tensor([[told, 1 - told]] * 2).log(), shares, even, 0.0)

    assert loss(0.7)[0] < min(loss(0.6)[0], loss(0.8)[0])
    assert loss(0.7)[1] == 0, "a row that nobody labelled teaches nothing"


def test_metrics_of_a_hand_computed_example() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    scores = classification_scores(probabilities, np.array([0, 1, 1, 0]))
    assert scores.war == 0.75
    assert scores.uar == pytest.approx((1 + 0.5) / 2)
    assert scores.macro_f1 == pytest.approx((2 * 2 / (2 + 3) + 2 * 1 / (2 + 1)) / 2)
    assert scores.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert scores.recall[:2].tolist() == [1.0, 0.5]
    assert np.isnan(scores.recall[2])
    # Four bins of one sample each: |1 - .9|, |0 - .6|, |1 - .8|, |1 - .7|.
    assert scores.ece == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5))
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([rng.choice(5, p=p) for p in chance])
    assert fit_temperature(logits * 3, truth) == pytest.approx(3, rel=0.1)


@pytest.fixture(scope="module")
def tables(fer2013, tmp_path_factory) -> tuple[Path, Path]:
    """A few hundred labelled pictures to train on and some to validate on."""
    folder = tmp_path_factory.mktemp("tables")
    table = pq.read_table(fer2013 / "fer2013_valid.parquet", columns=["image", "label"])
    for name, rows in (("train", range(160)), ("valid", range(160, 240))):
        pq.write_table(table.take(list(rows)), folder / f"{name}.parquet")
    return folder / "train.parquet", folder / "valid.parquet"


def lora(tables: tuple[Path, Path], **changes: object) -> dict:
    stage = {
        "name": "adapt", "trains": "model", "epochs": 1, "batch_size": 40, "warmup_steps": 1,
        "stem_learning_rate_factor": 0.0, "learning_rate": 1e-3, "precision": "float32",
    }  # fmt: skip
    return {
        "name": "mine", "start": {"model": "emo-llama-tiny"}, "adapter": {"rank": 4},
        "data": {"train": tables[0], "valid": tables[1]}, "stages": [stage],
    } | changes  # fmt: skip


def test_lora_changes_what_it_should_and_is_merged(tables, tmp_path) -> None:
    torch.set_num_threads(1)
    scores = tune(TuneConfig(**lora(tables)), tmp_path / "mine", lambda _: None).scores
    assert scores.war > 0.45, "it starts from a model that knows much, and chance is 0.25"
    before, after = (load_model(name).network for name in (DEFAULT_MODEL, str(tmp_path / "mine")))
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    # Weights stand in the folder as fp16, and both were read from such.
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    kinds = {"face_info", "language", "text_projection", "key_projection"}
    kinds |= {"value_projection", "content_projection"}
    assert {name.split(".")[0] for name in changed} == kinds
    layers = {name.split(".")[-2] for name in changed if name.startswith("language")}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"}
    base = EmoLlama(before.config)
    base.load_state_dict(
        new | {n: v for n, v in old.items() if n.startswith("language")}, strict=False
    )
    adapter = PeftModel.from_pretrained(base.language, str(tmp_path / "mine" / "adapter"))
    merged = adapter.merge_and_unload().state_dict()
    for name in changed:
        if name.startswith("language."):
            ours = merged[name.removeprefix("language.")]
            torch.testing.assert_close(ours, new[name], atol=2e-3, rtol=1e-2)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "# mine" in card
    assert "LoRA of rank 4" in card


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"start": None}, "name the sizes in `model`"),
        ({"start": {"model": DEFAULT_MODEL, "only": ["vision."]}}, "name the sizes in `model`"),
        (
            {"stages": [{"name": "s", "trains": "stem", "epochs": 1}]},
            "the vision side stands still",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused(tables, changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TuneConfig(**lora(tables, **changes))


def test_a_target_that_is_no_layer_and_a_start_that_does_not_fit_are_told(tables, tmp_path) -> None:
    wrong = lora(tables, adapter={"targets": ["no_proj"]})
    with pytest.raises(UserError, match=r"adapter\.targets: .*no_proj"):
        tune(TuneConfig(**wrong), tmp_path / "a", lambda _: None)
    other = lora(tables, adapter=None, model=small_config().model_dump())
    with pytest.raises(UserError, match=r"start\.model: .* the model to tune"):
        tune(TuneConfig(**other), tmp_path / "b", lambda _: None)


def records(folder: Path, pictures: list[bytes], **columns: list) -> Path:
    """Instruction records as JSONL, pictures as base64."""
    rows = [
        {name: values[k] for name, values in columns.items() if values[k] is not None}
        | ({"image": base64.b64encode(picture).decode()} if picture is not None else {})
        for k, picture in enumerate(pictures)
    ]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_cannot_be_learnt_from_are_counted_and_told(tables, tmp_path) -> None:
    picture = pq.read_table(tables[0])["image"][0].as_py()
    table = records(
        tmp_path,
        [picture, None, picture, b"", b"no picture", picture],
        label=["happy", "happy", "bored", "surprise", "happy", None],
        answer=[None, None, None, None, None, "A smile."],
    )
    lines: list[str] = []
    made = read_examples(
        str(table), TWO, config().crop, grayscale=True, frames=8, cache=tmp_path,
        find=pictures_here, log=lines.append,
    )  # fmt: skip
    assert made.labels.tolist() == [0, -1]
    assert made.told[1].answer == "A smile."
    assert made.skipped == {"not_found": 1, "unknown_label": 1, "decode_error": 2}
    assert any("1 of 6 rows left out: their label is none of the label set" in x for x in lines)
    useless = records(tmp_path, [b"", None], label=["happy", "happy"])
    with pytest.raises(UserError, match="no row to learn from"):
        examples(useless, tmp_path)


def prompter_of(network: EmoLlama) -> Prompter:
    tokenizer = train_tokenizer(["What is this ? a smile happiness surprise"], 400)
    assert network.config.language.vocab_size >= 400
    return Prompter(tokenizer, tokenizer, 64)


def loss_alone(tuner: InstructionTuner, batch: Batch, row: int) -> float:
    """One row's loss from a forward of its own, token by token."""
    told = batch.told[row]
    prompt = tuner._prompt(told)
    ids = [
        *prompt.labels[int(batch.shares[row].argmax()) if told.answer is None else 0],
        tuner.prompter.eos,
    ]
    visual = tuner._visual(batch, [prompt] * len(batch))[row : row + 1]
    given = torch.tensor([*prompt.ids, *ids[:-1]])
    logits = tuner.network.language(inputs_embeds=tuner.network.splice(given, visual)).logits[0]
    scores = logits.log_softmax(-1)[-len(ids) :]
    tokens = [-float(scores[k, token].detach()) for k, token in enumerate(ids)]
    return sum(tokens) / (len(tokens) if told.answer is not None else 1)


def test_records_of_unequal_questions_train_together_as_they_would_alone(faces) -> None:
    torch.manual_seed(0)
    few = replace(
        faces.select(np.arange(4)),
        told=(
            Told(),
            Told("What is this ?", "a smile"),
            Told(None, "surprise, a wide open mouth", (("age", "20-29"),), "oh no"),
            Told(attributes=(("gender", "female"),)),
        ),
    )
    mining = FaceInfoConfig(global_dim=256, num_queries=4, width=32, heads=2)
    made = small_config(face_info=mining, attributes=True, transcript=True)
    network = EmoLlama(made).eval()
    tuner = InstructionTuner(network, prompter_of(network), TWO)
    canvas = few.canvas.repeat(3, axis=3)
    (batch,) = plain_batches(replace(few, canvas=canvas), tuner.size)
    losses = tuner(batch, torch.ones(2), 0.0)
    alone = [loss_alone(tuner, batch, row) for row in range(4)]
    np.testing.assert_allclose(losses.detach().numpy(), alone, rtol=1e-4)
    losses.sum().backward()
    assert network.face_info is not None
    assert all(p.grad is not None for p in network.face_info.parameters())
    scores = tuner.log_scores(batch).exp()
    torch.testing.assert_close(scores.sum(1), torch.ones(4))
    deaf = InstructionTuner(EmoLlama(made), tuner.prompter, TWO)
    deaf.network.load_state_dict(network.state_dict())
    deaf.network.config = made.model_copy(update={"attributes": False, "transcript": False})
    unheard = deaf.eval().log_scores(batch).exp()
    assert not torch.allclose(unheard[3], scores[3]), "a model told of attributes reads them"
    torch.testing.assert_close(unheard[0], scores[0])


def test_parts_of_a_batch_and_recomputed_activations_train_alike(tables, tmp_path) -> None:
    torch.set_num_threads(1)
    told = {}
    for name, extra in (
        ("whole", {}),
        ("parts", {"accumulate": 4, "gradient_checkpointing": True}),
    ):
        config = lora((tables[1], tables[1]), adapter=None)
        # Batch statistics of a part would not be those of the whole: the stem stands still.
        config["stages"][0] |= {"learning_rate": 1e-4} | extra
        tune(TuneConfig(**config), tmp_path / name, lambda _: None)
        lines = (tmp_path / name / "training" / "adapt-metrics.jsonl").read_text().splitlines()
        told[name] = [json.loads(line)["loss"] for line in lines]
    assert told["whole"][0] != pytest.approx(told["whole"][1], rel=4e-3)
    np.testing.assert_allclose(told["parts"], told["whole"], rtol=2e-3)


def test_clips_keep_their_own_motion(tmp_path) -> None:
    """A row of pictures in time order is one clip; each view shows its own picture."""
    pictures = [np.full((120, 100, 3), 40 * k, np.uint8) for k in range(1, 5)]
    for k, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{k}.png"), picture)
    table = pa.table(
        {"frames": [[f"{k}.png" for k in range(4)], ["0.png"]], "label": ["happy"] * 2}
    )
    pq.write_table(table, tmp_path / "clips.parquet")
    made = examples(tmp_path / "clips.parquet", tmp_path / "cache")
    assert made.count.tolist() == [4, 1]
    both = {len(b.clips.pixels[0]): b for b in plain_batches(made, 48)}
    shades = both[4].clips.pixels[0].mean((1, 2, 3)) * 255
    np.testing.assert_allclose(shades, [40, 80, 120, 160], atol=1)
    generator = torch.Generator().manual_seed(0)
    calm = {len(b.clips.pixels[0]): b for b in augmented_batches(made, 2, 48, generator)}
    assert list(calm) == [2], "a clip gives two of its frames, a picture two views"


def test_an_adapter_goes_on_where_it_was_made_and_nowhere_else(tables, tmp_path) -> None:
    torch.set_num_threads(1)
    tune(TuneConfig(**lora(tables)), tmp_path / "mine", lambda _: None)
    network = load_model(DEFAULT_MODEL).network
    merge_adapter(network, tmp_path / "mine" / "adapter", DEFAULT_MODEL)
    ours = load_model(str(tmp_path / "mine")).network.state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, ours[name], atol=2e-3, rtol=1e-2)
    with pytest.raises(
        UserError, match=r"adapter adapts emo-llama-tiny of revision \w+; .*mine has"
    ):
        merge_adapter(network, tmp_path / "mine" / "adapter", str(tmp_path / "mine"))
    with pytest.raises(UserError, match="is no adapter"):
        merge_adapter(network, tmp_path, DEFAULT_MODEL)


def two_workers(rank: int, meeting: Path, config: TuneConfig, output: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    tune(config, output, lambda _: None)
    torch.distributed.destroy_process_group()


def test_processes_that_train_together_end_with_one_model(tables, tmp_path) -> None:
    config = TuneConfig(**lora(tables, data={"train": tables[1], "valid": tables[1]}))
    prepare(config, tmp_path / "two", pictures_here, lambda _: None)
    torch.multiprocessing.spawn(
        two_workers, (tmp_path / "meeting", config, tmp_path / "two"), nprocs=2
    )
    lines = (tmp_path / "two" / "training" / "adapt-metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert load_model(str(tmp_path / "two")).config.name == "mine"
