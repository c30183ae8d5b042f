"""EMO-LLaMA's inference: whatever the batch, precision or packing, a window's answer is its own."""

import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from emolake.pipeline.annotators.base import FaceCrops, WindowInput
from emolake.pipeline.annotators.batches import MicroBatches
from emolake.pipeline.annotators.emo_llama import EmoLlamaAnnotator
from emolake.pipeline.annotators.pixels import decoded
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.faces.align import MIRRORED_POINTS
from emolake.pipeline.faces.encoding import decode_crop, decode_picture, encode_crop
from emolake.pipeline.faces.mtcnn import Mtcnn
from emolake.pipeline.faces.still import still_window
from emolake.pipeline.models.catalog import DEFAULT_MODEL
from emolake.pipeline.models.config import EmoLlamaConfig
from emolake.pipeline.models.emo_llama import EmoLlama
from emolake.pipeline.models.folder import save_model
from emolake.pipeline.models.prompts import Prompter, train_tokenizer
from emolake.pipeline.models.scoring import LabelTrie
from tests.pipeline.models.test_models import small_config


def crops(seed: int, frames: int, size: int) -> FaceCrops:
    rng = np.random.default_rng(seed)
    made = [rng.integers(0, 255, (size, size, 3), np.uint8) for _ in range(frames)]
    points = rng.random((frames, 5, 2)).astype(np.float32)
    return FaceCrops([encode_crop(p, "png") for p in made], points)


def window(annotator: EmoLlamaAnnotator, seed: int, frames: int = 3) -> WindowInput:
    dim = annotator.model_config.face_info.global_dim
    features = np.random.default_rng(seed).normal(size=(frames, dim)).astype(np.float32)
    size = annotator.model_config.vision.image_size
    return WindowInput({annotator.view: crops(seed, frames, size)}, features)


def saved(folder: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    config: EmoLlamaConfig = small_config(name="random", trained=False, temperature=4.0, **changes)
    network = EmoLlama(config)
    with torch.no_grad():  # so that the answer depends on what is seen
        for weights in network.parameters():
            if weights.ndim == 2:
                weights.mul_(6)
    tokenizer = train_tokenizer(["happiness sadness"], 390)
    save_model(folder, network, Prompter(tokenizer, tokenizer, 256), "")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def scores(annotator: EmoLlamaAnnotator, windows: list[WindowInput]) -> np.ndarray:
    return np.array([list(a.scores.values()) for a in annotator.annotate(windows)])


@torch.inference_mode()
def plainly(annotator: EmoLlamaAnnotator, one: WindowInput) -> np.ndarray:
    """The module path: one window, the whole prompt in one forward, one more for each label."""
    network, prompt = annotator.network, annotator.prompter.emotion(annotator.labels)
    embeds = annotator.embeds(annotator.prepared([one]), prompt)
    told = []
    for label in prompt.labels:
        read = network.language.get_input_embeddings()(torch.tensor([label]))
        logits = network.language(inputs_embeds=torch.cat([embeds, read], 1)).logits.float()
        steps = logits.log_softmax(-1)[0, embeds.shape[1] - 1 : -1]
        told.append(float(steps.gather(1, torch.tensor(label)[:, None]).sum()))
    logits = torch.tensor(told, dtype=torch.float64) / annotator.model_config.temperature
    return logits.softmax(-1).numpy()


def test_packed_windows_score_as_the_plain_module_path(folder: Path) -> None:
    annotator = EmoLlamaAnnotator(str(folder), AnnotatorConfig(micro_batch=4))
    assert LabelTrie.of(annotator.prompter.emotion(annotator.labels).labels).inner
    windows = [window(annotator, k, frames) for k, frames in enumerate([3, 1, 8, 3, 3, 1, 3, 3, 8])]
    packed = scores(annotator, windows)
    for row, one in zip(packed, windows, strict=True):
        np.testing.assert_allclose(row, plainly(annotator, one), atol=1e-4)
    assert packed.std(0).max() > 1e-3, "they differ from window to window"


def test_a_face_and_its_mirror_are_scored_alike_where_flip_is_asked_for(folder: Path) -> None:
    plain, flip = (
        EmoLlamaAnnotator(str(folder), AnnotatorConfig(flip=wanted)) for wanted in (False, True)
    )
    one = window(plain, 5)
    seen = one.crops[plain.view]
    pictures = [encode_crop(decode_crop(p)[:, ::-1].copy(), "png") for p in seen.pictures]
    points = seen.landmarks[:, list(MIRRORED_POINTS)] * np.float32([-1, 1]) + np.float32([1, 0])
    mirror = replace(one, crops={plain.view: FaceCrops(pictures, points)})
    alone = scores(plain, [one, mirror])
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    np.testing.assert_allclose(scores(flip, [one, mirror]), [alone.mean(0)] * 2, atol=1e-5)


def test_what_comes_again_and_again_is_compiled_and_filled_up_and_gives_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[int] = []
    real = torch.compile

    def compiled(function, **options):
        def counted(pixels, question):
            shapes.append(len(pixels))
            return traced(pixels, question)

        traced = real(function, backend="aot_eager", **options)
        return counted

    plain = EmoLlamaAnnotator(str(folder), AnnotatorConfig(micro_batch=4))
    monkeypatch.setattr(torch, "compile", compiled)
    still = EmoLlamaAnnotator(str(folder), AnnotatorConfig(micro_batch=4, compile=True))
    windows = [window(plain, k, 2) for k in range(6)]
    odd = [window(plain, k, frames) for k, frames in enumerate((1, 3, 5))]
    for _ in range(2):
        np.testing.assert_allclose(scores(still, windows), scores(plain, windows), atol=1e-4)
    np.testing.assert_allclose(scores(still, odd), scores(plain, odd), atol=1e-4)
    assert shapes == [8, 8], (
        "the last batch is filled up; the first ones, and odd ones, are not worth it"
    )


def test_bfloat16_says_what_float32_says_of_real_faces(fer2013) -> None:
    exact = EmoLlamaAnnotator(DEFAULT_MODEL, AnnotatorConfig())
    fast = EmoLlamaAnnotator(DEFAULT_MODEL, AnnotatorConfig(precision="bfloat16"))
    assert fast.network.language.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert fast.network.language.model.norm.weight.dtype == torch.float32
    rows = pq.read_table(fer2013 / "fer2013_valid.parquet", columns=["image"])["image"]
    windows = [window_of(exact, image) for image in rows[:200].to_pylist()]
    one, other = scores(exact, windows), scores(fast, windows)
    assert np.quantile(np.abs(one - other).max(1), 0.99) < 1e-2
    assert (one.argmax(1) == other.argmax(1)).mean() >= 0.995


@pytest.mark.parametrize("changes", [{}, {"quantize": "int8"}, {"describe": True}])
def test_labels_of_several_tokens_are_scored_in_mixed_precision(folder: Path, changes) -> None:
    exact = EmoLlamaAnnotator(str(folder), AnnotatorConfig())
    mixed = EmoLlamaAnnotator(str(folder), AnnotatorConfig(precision="bfloat16", **changes))
    windows = [window(exact, k) for k in range(4)]
    assert max(len(label) for label in exact.prompter.emotion(exact.labels).labels) > 1
    np.testing.assert_allclose(scores(mixed, windows), scores(exact, windows), atol=0.05)


_MTCNN = Mtcnn()


def window_of(annotator: EmoLlamaAnnotator, image: bytes) -> WindowInput:
    made = still_window([decode_picture(image)], _MTCNN, annotator.needs)
    return WindowInput.of(made, annotator.needs, {})


def test_eight_bit_weights_say_nearly_the_same() -> None:
    whole = EmoLlamaAnnotator(DEFAULT_MODEL, AnnotatorConfig())
    small = EmoLlamaAnnotator(DEFAULT_MODEL, AnnotatorConfig(quantize="int8"))
    linear = small.network.language.model.layers[0].mlp.up_proj.weight
    assert linear.qdata.dtype == torch.int8
    windows = [window(whole, k, 4) for k in range(12)]
    one, other = scores(whole, windows), scores(small, windows)
    assert 0 < np.abs(one - other).max() < 0.02
    assert (one.argmax(1) == other.argmax(1)).mean() >= 11 / 12


def test_it_describes_where_asked(folder: Path) -> None:
    told = AnnotatorConfig(describe=True, max_answer_tokens=6)
    annotator = EmoLlamaAnnotator(str(folder), told)
    windows = [window(annotator, k) for k in range(3)]
    together = annotator.annotate(windows)
    assert all(isinstance(a.description, str) for a in together)
    for a, one in zip(together, windows, strict=True):
        alone = annotator.annotate([one])[0]
        assert alone.description == a.description
        assert alone.scores == pytest.approx(a.scores, abs=1e-5)
    plain = EmoLlamaAnnotator(str(folder), AnnotatorConfig()).annotate(windows)
    assert [a.description for a in plain] == [None] * 3
    for a, b in zip(together, plain, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-5), "words change no score"


def test_a_window_that_holds_no_numbers_is_refused_and_others_are_not(folder: Path) -> None:
    from emolake.actors.annotation_actor import _annotated

    annotator = EmoLlamaAnnotator(str(folder), AnnotatorConfig())
    windows = [window(annotator, k) for k in range(3)]
    windows[1].features[0, 0] = np.nan
    good, bad, also = _annotated(annotator, windows)
    assert isinstance(bad, ValueError)
    assert "no numbers" in str(bad)
    assert good.scores == pytest.approx(annotator.annotate([windows[0]])[0].scores, abs=1e-5)
    assert also.emotion


def test_crops_of_another_size_cost_their_own_window(folder: Path) -> None:
    from emolake.actors.annotation_actor import _annotated

    annotator = EmoLlamaAnnotator(str(folder), AnnotatorConfig())
    odd = window(annotator, 1)
    odd = WindowInput({annotator.view: crops(1, 3, 24)}, odd.features)
    mixed = window(annotator, 2)
    torn = crops(2, 2, 32).pictures + crops(2, 1, 24).pictures
    mixed = WindowInput(
        {annotator.view: FaceCrops(torn, mixed.crops[annotator.view].landmarks)}, mixed.features
    )
    told = _annotated(annotator, [window(annotator, 0), odd, mixed])
    assert not isinstance(told[0], Exception)
    assert isinstance(told[1], Exception)
    assert isinstance(told[2], Exception)


def test_a_prompt_longer_than_the_context_is_told_in_a_line(tmp_path: Path) -> None:
    from emolake.pipeline.models.config import LanguageConfig

    short = LanguageConfig(
        vocab_size=400, width=32, depth=2, heads=2, mlp_hidden=64, max_positions=200
    )
    annotator = EmoLlamaAnnotator(str(saved(tmp_path, language=short)), AnnotatorConfig())
    with pytest.raises(ValueError, match=r"the model's context is 200; fewer frames"):
        annotator.annotate([window(annotator, 0, 40)])


def doubled(batch: list[int]) -> list[int]:
    return [2 * x for x in batch]


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing() -> None:
    seen: list[int] = []

    def forward(batch: list[int]) -> list[int]:
        if len(batch) > 3:
            raise torch.OutOfMemoryError("fake limit")
        seen.append(len(batch))
        return doubled(batch)

    batches = MicroBatches(16)
    assert list(batches.run(list(range(10)), list, forward)) == doubled(list(range(10)))
    assert seen == [2, 2, 2, 2, 2]
    assert batches.size == 2

    def never(batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("not even one")

    with pytest.raises(torch.OutOfMemoryError):
        list(MicroBatches(4).run([1, 2], list, never))


class FakeMemory:
    """A device of 1000 bytes of which a window takes 30, after the weights."""

    def __init__(self, weights: int) -> None:
        self.weights = self.used = weights

    def started(self) -> int:
        self.used = self.weights
        return self.weights

    def peak(self) -> int:
        return self.used

    def total(self) -> int:
        return 1000


@pytest.mark.parametrize(
    ("weights", "grown", "after"),
    [(100, [1, 2, 4, 8, 16, 16, 13], [16, 4]), (600, [1, 2, 4, *[8] * 6, 5], [8, 8, 4])],
)
def test_the_batch_grows_to_what_the_memory_holds(
    weights: int, grown: list[int], after: list[int]
) -> None:
    memory = FakeMemory(weights)
    seen: list[int] = []

    def forward(batch: list[int]) -> list[int]:
        seen.append(len(batch))
        memory.used = weights + 30 * len(batch)
        assert memory.used <= 1000
        return doubled(batch)

    batches = MicroBatches(1)
    batches._memory = memory
    assert list(batches.run(list(range(60)), list, forward)) == doubled(list(range(60)))
    assert seen == grown
    assert list(batches.run(list(range(20)), list, forward)) == doubled(list(range(20)))
    assert seen[len(grown) :] == after, "what was found stands"


def test_the_next_batch_is_prepared_while_the_current_one_runs() -> None:
    prepared_next = threading.Event()

    def prepare(batch: list[int]) -> list[int]:
        if batch[0]:
            prepared_next.set()
        return list(batch)

    def forward(batch: list[int]) -> list[int]:
        if not batch[0]:
            assert prepared_next.wait(10), "forward waits for what only a second thread can do"
        return doubled(batch)

    batches = MicroBatches(2)
    batches._ahead = True
    assert list(batches.run(list(range(5)), prepare, forward)) == doubled(list(range(5)))


class PretendedDevice:
    """Clocks of a device, of the process that gives it work, and of the thread that decodes ahead: seconds
    pass by what each does, and nobody waits for them."""

    def __init__(self, decoding: float, computing: float) -> None:
        self.decoding, self.computing = decoding, computing
        self.now = self.decoder = self.idle = 0.0
        self._begun: dict[int, threading.Event] = defaultdict(threading.Event)

    def prepare(self, batch: list[int]) -> tuple[list[int], float]:
        ahead = threading.current_thread() is not threading.main_thread()
        begins = max(self.now, self.decoder) if ahead else self.now
        self.decoder = begins + self.decoding * len(batch)
        self._begun[batch[0]].set()
        return batch, self.decoder

    def forward(self, given: tuple[list[int], float], after: int | None) -> list[int]:
        batch, ready = given
        if after is not None:
            assert self._begun[after].wait(10), (
                "the next batch is decoded only when this one is done"
            )
        self.idle += max(ready - self.now, 0.0)
        self.now = max(ready, self.now) + self.computing * len(batch)
        return doubled(batch)


@pytest.mark.parametrize(
    ("decoding", "idle"),
    [
        (0.5, 8 * 0.5),  # the first batch of a call is waited for, and no other
        (1.5, 8 * 1.5 + 4 * 8 * 0.5),  # where decoding takes longer, what it takes longer
    ],
)
def test_a_device_waits_for_the_first_batch_and_for_what_decoding_takes_longer(
    decoding: float, idle: float
) -> None:
    device, items = PretendedDevice(decoding, 1.0), list(range(40))
    batches = MicroBatches(8)
    batches._ahead = True

    def forward(given: tuple[list[int], float]) -> list[int]:
        after = given[0][-1] + 1
        return device.forward(given, after if after < len(items) else None)

    assert list(batches.run(items, device.prepare, forward)) == doubled(items)
    assert device.idle == pytest.approx(idle)


def test_what_a_gpu_is_given_is_decoded_by_threads_in_order() -> None:
    pictures = [np.full((8, 8, 3), k, np.uint8) for k in range(40)]
    encoded = [encode_crop(picture, "png") for picture in pictures]
    for device in ("cpu", "cuda"):
        assert [p[0, 0, 0] for p in decoded(encoded, torch.device(device))] == list(range(40))
    with pytest.raises(ValueError, match="not an encoded crop"):
        decoded([encoded[0], b"torn"], torch.device("cuda"))
