"""The sister systems as annotators: what they read, what they give, and what batches may not change."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from emolake.pipeline.annotators.answers import by_answer, read_action_units, read_label
from emolake.pipeline.annotators.base import Annotation, FaceCrops, WindowInput, load_annotator
from emolake.pipeline.annotators.emollm import (
    EMOTIONS,
    VALENCE,
    read_class,
    read_emotions,
    read_score,
)
from emolake.pipeline.annotators.speech import SpeechRecognizer
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.encoding import encode_crop
from emolake.pipeline.faces.needs import CropView, FrameView, Needs
from emolake.pipeline.labels import LABEL_SETS
from emolake.pipeline.models.text import TextModel
from emolake.pipeline.video.sound import RATE, Sound
from tests.pipeline.annotators.systems import (
    landmark_network,
    random_emola,
    random_emotion_llama,
    random_encoders,
    random_text_model,
    random_whisper,
)

SEVEN = LABEL_SETS["fer2013"]


def picture(seed: int, size: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    return encode_crop(pixels, "png")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("The person looks happy, with raised cheeks.", "happiness"),
        ("There is no sign of anger. The mouth shows disgust and fear, mostly fear.", "fear"),
        ("She isn't sad. She is calm.", "neutral"),
        ("Brows are raised; a surprised face. Later anger, anger, anger.", "surprise"),
        ("The face is unhappy.", "sadness"),
        ("A face.", None),
        ("", None),
    ],
)
def test_a_label_is_read_from_an_answer(answer: str, label: str | None) -> None:
    assert read_label(answer, SEVEN) == label


def test_an_answer_that_names_a_label_is_all_the_scores_say() -> None:
    scores = {"happiness": 0.2, "fear": 0.8}
    assert by_answer(scores, "A happy face.") == ({"happiness": 1.0, "fear": 0.0}, [])
    assert by_answer(scores, "A face.") == (scores, ["label_answer"])
    assert by_answer(scores, None) == (scores, ["label_answer"])


def test_action_units_are_read_from_an_answer() -> None:
    answer = "AU12 and AU 6 are active. AU4 is not present. AU25, au12."
    assert read_action_units(answer) == ["AU6", "AU12", "AU25"]


def test_needs_of_several_annotators_share_views() -> None:
    from emolake.pipeline.faces.align import CropSpec

    small, large = CropView(CropSpec(48)), CropView(CropSpec(336), middle_only=True)
    one = Needs(crops=(small,), features=True)
    other = Needs(crops=(large, small), frames=(FrameView(448, True),), sound=True)
    both = Needs.of_all([one, other])
    assert both.crops == (small, large)
    assert both.features
    assert both.sound
    assert Needs.from_json(both.to_json()) == both


@pytest.fixture(scope="module")
def emola(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emola")
    landmark_network(folder / "2d106det.onnx")
    return random_emola(folder / "model")


def emola_options(folder: Path, **more: object) -> AnnotatorConfig:
    network = str(folder.parent / "2d106det.onnx")
    return AnnotatorConfig(landmark_network=network, **more)


def emola_windows(view: CropView, count: int = 3) -> list[WindowInput]:
    points = np.zeros((1, 5, 2), np.float32)
    crops = [FaceCrops([picture(seed, view.spec.size)], points) for seed in range(count)]
    return [WindowInput({view: crop}, np.zeros((1, 0), np.float32)) for crop in crops]


def test_emola_scores_describes_and_names_action_units(emola: Path) -> None:
    options = emola_options(emola, describe=True, action_units=True, max_answer_tokens=5)
    annotator = load_annotator(str(emola), options, "cpu")
    (view,) = annotator.needs.crops
    windows = emola_windows(view)
    made = annotator.annotate(windows)
    for annotation in made:
        assert sum(annotation.scores.values()) == pytest.approx(1, abs=1e-5)
        assert tuple(annotation.scores) == SEVEN
        assert isinstance(annotation.description, str)
        assert isinstance(annotation.action_units, list)
    assert made[0].scores != made[1].scores, "it looks at the picture"
    alone = [annotator.annotate([window])[0] for window in windows]
    for together, single in zip(made, alone, strict=True):
        assert_close(together, single)


def assert_close(a: Annotation, b: Annotation) -> None:
    assert list(a.scores.values()) == pytest.approx(list(b.scores.values()), abs=1e-5)
    assert (a.description, a.action_units) == (b.description, b.action_units)


def test_a_written_answer_that_names_nothing_leaves_the_scores(emola: Path) -> None:
    plain = load_annotator(str(emola), emola_options(emola), "cpu")
    reads = emola_options(emola, read_answer=True, max_answer_tokens=2)
    (window,) = emola_windows(plain.needs.crops[0], 1)
    (made,) = load_annotator(str(emola), reads, "cpu").annotate([window])
    assert made.description is None, "nobody asked for words"
    if made.absent == ["label_answer"]:
        assert made.scores == plain.annotate([window])[0].scores
    else:
        assert sorted(made.scores.values())[-2:] == [0.0, 1.0]


def test_emola_writes_nothing_unasked(emola: Path) -> None:
    annotator = load_annotator(str(emola), emola_options(emola), "cpu")
    (made,) = annotator.annotate(emola_windows(annotator.needs.crops[0], 1))
    assert (made.description, made.action_units, made.valence) == (None, None, None)


def test_emola_looks_at_the_landmarks(emola: Path, tmp_path: Path) -> None:
    first = load_annotator(str(emola), emola_options(emola), "cpu")
    windows = emola_windows(first.needs.crops[0], 1)
    weights = emola.parent / "2d106det.onnx"
    other = landmark_network(tmp_path / "other.onnx")
    data = weights.read_bytes()
    assert data == other.read_bytes()
    scaled = AnnotatorConfig(landmark_network=str(_scaled(other)))
    second = load_annotator(str(emola), scaled, "cpu")
    assert first.annotate(windows)[0].scores != second.annotate(windows)[0].scores


def _scaled(path: Path) -> Path:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    (weights,) = model.graph.initializer
    weights.CopyFrom(numpy_helper.from_array(5 * numpy_helper.to_array(weights), "w"))
    onnx.save(model, str(path))
    return path


def test_a_landmark_network_that_is_none_is_told(emola: Path, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="is no ONNX model"):
        load_annotator(
            str(emola), AnnotatorConfig(landmark_network=str(tmp_path / "x.onnx")), "cpu"
        )


@pytest.fixture(scope="module")
def emotion_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnnotatorConfig]:
    folder = tmp_path_factory.mktemp("emotion-llama")
    options = AnnotatorConfig(**random_encoders(folder), max_answer_tokens=4)
    return random_emotion_llama(folder / "model"), options


def test_all_systems_say_the_same_in_mixed_precision(emola: Path, emotion_llama) -> None:
    model, options = emotion_llama
    for folder, config in ((emola, emola_options(emola)), (model, options)):
        exact = load_annotator(str(folder), config, "cpu")
        mixed = load_annotator(
            str(folder), config.model_copy(update={"precision": "bfloat16"}), "cpu"
        )
        windows = (
            emola_windows(exact.needs.crops[0])
            if folder == emola
            else [clip(exact.needs, transcript="a surprise")]
        )
        for one, other in zip(exact.annotate(windows), mixed.annotate(windows), strict=True):
            assert one.scores != other.scores
            for label, score in one.scores.items():
                assert other.scores[label] == pytest.approx(score, abs=0.03)


def clip(needs: Needs, **changes: object) -> WindowInput:
    (faces,), (one, every) = needs.crops, needs.frames
    rng = np.random.default_rng(0)
    given = {
        "crops": {
            faces: FaceCrops([picture(k, faces.spec.size) for k in range(5)], np.zeros((5, 5, 2)))
        },
        "features": np.zeros((5, 0), np.float32),
        "frames": {
            one: [picture(9, one.size)],
            every: [picture(10 + k, every.size) for k in range(5)],
        },
        "sound": rng.integers(-9000, 9000, 16_000).astype(np.int16),
        "transcript": "a surprise",
    }  # fmt: skip
    return WindowInput(**(given | changes))


def test_emotion_llama_reads_every_part_of_a_clip(emotion_llama) -> None:
    model, options = emotion_llama
    annotator = load_annotator(str(model), options, "cpu")
    needs = annotator.needs
    (faces,), (one, every) = needs.crops, needs.frames
    whole = clip(needs)
    rng = np.random.default_rng(1)
    other_faces = FaceCrops(
        [picture(90 + k, faces.spec.size) for k in range(5)], np.zeros((5, 5, 2))
    )
    changed = {
        "face": {"crops": {faces: other_faces}},
        "frame": {"frames": whole.frames | {one: [picture(99, one.size)]}},
        "clip": {"frames": whole.frames | {every: [picture(80 + k, every.size) for k in range(5)]}},
        "sound": {"sound": rng.integers(-900, 900, 16_000).astype(np.int16)},
        "transcript": {"transcript": "a fear"},
    }
    first = annotator.annotate([whole])[0]
    assert sum(first.scores.values()) == pytest.approx(1, abs=1e-5)
    assert tuple(first.scores) == LABEL_SETS["emotion-llama"]
    assert first.transcript == "a surprise"
    assert first.absent is None
    for part, change in changed.items():
        other = annotator.annotate([clip(needs, **change)])[0]
        assert other.scores != first.scores, part


def test_emotion_llamas_encoders_see_all_clips_of_a_batch_at_once(emotion_llama) -> None:
    model, options = emotion_llama
    annotator = load_annotator(str(model), options.model_copy(update={"micro_batch": 4}), "cpu")
    clips = [clip(annotator.needs, transcript=said) for said in ("a surprise", "a surprise", None)]
    alone = [annotator.annotate([one])[0] for one in clips]
    passes: Counter[str] = Counter()
    for name in ("_face", "_clip", "_audio"):
        encoder = getattr(annotator.encoders, name).model
        encoder.register_forward_hook(lambda *_, name=name: passes.update([name]))
    for together, one in zip(annotator.annotate(clips), alone, strict=True):
        assert_close(together, one)
    assert passes == {"_face": 2, "_clip": 2, "_audio": 2}, "prompts of two lengths"


def test_emotion_llama_hears_sounds_of_several_lengths_as_alone(emotion_llama) -> None:
    model, options = emotion_llama
    annotator = load_annotator(str(model), options.model_copy(update={"micro_batch": 4}), "cpu")
    sound = np.random.default_rng(2).integers(-9000, 9000, 20_000).astype(np.int16)
    heard = [sound[:16_000], sound[:399], sound, sound[4_000:]]
    clips = [clip(annotator.needs, sound=of) for of in heard]
    passes: list[int] = []
    annotator.encoders._audio.model.register_forward_hook(
        lambda _, given, __: passes.append(len(given[0]))
    )
    together = annotator.annotate(clips)
    assert sorted(passes) == [1, 2]
    for made, one in zip(together, clips, strict=True):
        assert_close(made, annotator.annotate([one])[0])


def test_emotion_llama_says_what_a_clip_had_not(emotion_llama) -> None:
    model, options = emotion_llama
    annotator = load_annotator(str(model), options.model_copy(update={"describe": True}), "cpu")
    mute = clip(annotator.needs, sound=None, transcript=None)
    talking = clip(annotator.needs)
    together = annotator.annotate([mute, talking, mute])
    assert [made.absent for made in together] == [
        ["sound", "transcript"],
        None,
        ["sound", "transcript"],
    ]
    assert all(isinstance(made.description, str) for made in together)
    for window, made in zip((mute, talking, mute), together, strict=True):
        assert_close(annotator.annotate([window])[0], made)


def test_encoders_are_optional_and_those_that_do_not_fit_are_told(emotion_llama, tmp_path) -> None:
    model, options = emotion_llama
    plain = load_annotator(str(model), AnnotatorConfig(), "cpu")
    assert plain.annotate([clip(plain.needs)])[0].scores
    wrong = options.model_copy(update={"video_mae": options.audio_encoder})
    with pytest.raises(UserError, match="is no VideoMAEModel: it lacks"):
        load_annotator(str(model), wrong, "cpu")
    missing = options.model_copy(update={"audio_encoder": str(tmp_path / "none")})
    with pytest.raises(UserError, match="is no folder of a model"):
        load_annotator(str(model), missing, "cpu")


@pytest.mark.parametrize(
    ("read", "answer", "value"),
    [
        (read_emotions, "joy, love, optimism", ["joy", "love", "optimism"]),
        (read_emotions, ">> Joy.", ["joy"]),
        (read_emotions, "neutral or no emotion", []),
        (read_emotions, "joy and a bit of love", None),
        (read_emotions, "", None),
        (read_score, "0.583", 0.583),
        (read_score, ">>1.000", 1.0),
        (read_score, "1.2", None),
        (read_score, "0.5 or so", None),
        (read_class, "-3: very negative emotional state can be inferred", -3.0),
        (read_class, "2", 2.0),
        (read_class, "4", None),
        (read_class, "none", None),
    ],
)
def test_answers_are_read_strictly(read, answer: str, value: object) -> None:
    assert read(answer) == value


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["llama", "opt", "bloom", "mistral", "t5", "bart"])
def test_text_models_score_as_one_forward_per_answer_would(tmp_path: Path, kind: str) -> None:
    model = TextModel(str(random_text_model(tmp_path / "model", kind=kind)), "cpu", limit=4)
    seq2seq = kind in ("t5", "bart")
    prompts = [EMOTIONS.prompt(text) for text in ("What a day!", "No.", "It was " * 20)]
    answers = ["joy", "optimism", "no"]
    scores = model.score(prompts, answers)
    each = [(p, a, scores[i, k]) for i, p in enumerate(prompts) for k, a in enumerate(answers)]
    for asked, answer, score in each:
        ids = model._ids(answer)
        total = 0.0
        for k, token in enumerate(ids):
            before = model.tokenizer(asked, return_tensors="pt")["input_ids"]
            if seq2seq:
                start = [model.model.config.decoder_start_token_id, *ids[:k]]
                logits = model.model(
                    input_ids=before, decoder_input_ids=torch.tensor([start])
                ).logits
            else:
                tail = torch.tensor([ids[:k]], dtype=torch.long)
                logits = model.model(input_ids=torch.cat([before, tail], 1)).logits
            total += float(logits[0, -1].float().log_softmax(-1)[token])
        assert float(score) == pytest.approx(total, abs=1e-4)
    alone = [answer for prompt in prompts for answer in model.write([prompt])]
    assert model.write(prompts) == alone


@pytest.mark.parametrize("seq2seq", [False, True])
def test_emollms_read_what_is_said_and_count_what_they_cannot_read(
    tmp_path: Path, seq2seq: bool
) -> None:
    folder = random_text_model(tmp_path / "Emot5-tiny", seq2seq=seq2seq)
    annotator = load_annotator(str(folder), AnnotatorConfig(max_answer_tokens=4), "cpu")
    assert annotator.name == "Emot5-tiny"
    assert not annotator.needs.faces
    said = ["What a lovely day!", "No."]
    windows = [WindowInput({}, np.zeros((0, 0), np.float32), transcript=text) for text in said]
    made = annotator.annotate(windows)
    for annotation, text in zip(made, said, strict=True):
        assert sum(annotation.scores.values()) == pytest.approx(1, abs=1e-5)
        assert 0 <= annotation.valence <= 1
        assert annotation.sentiment in range(-3, 4)
        assert annotation.transcript == text
        assert "valence_answer" in annotation.absent, "random weights write no number"
    alone = annotator.annotate(windows[1:])[0]
    assert alone.scores == pytest.approx(made[1].scores, abs=1e-5)
    assert alone.valence == pytest.approx(made[1].valence, abs=1e-5)
    expected = AnnotatorConfig(max_answer_tokens=4, regression="expected")
    asked = load_annotator(str(folder), expected, "cpu").annotate(windows)[0]
    assert asked.valence == pytest.approx(made[0].valence, abs=1e-5)
    assert "valence_answer" not in (asked.absent or [])
    assert VALENCE.prompt("x").startswith("Human: \nTask: Evaluate the valence intensity")


def test_speech_becomes_cues_within_the_sound(tmp_path: Path) -> None:
    recognizer = SpeechRecognizer(str(random_whisper(tmp_path / "whisper")), "cpu")
    samples = np.random.default_rng(0).integers(-9000, 9000, 3 * RATE).astype(np.int16)
    cues = recognizer(Sound(100.0, samples))
    assert cues, "random weights say something, and it means nothing"
    assert all(100.0 <= cue.start_s < cue.end_s <= 103.0 for cue in cues)
    assert recognizer(Sound(100.0, samples[:100])) == []
    with pytest.raises(UserError, match=r"annotator\.recognizer"):
        SpeechRecognizer(str(tmp_path), "cpu")
