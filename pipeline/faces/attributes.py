"""Apparent age, gender and race of a face, as FairFace's classes name them: a prompt's context, off by
default and stored only where the user says so.

FairFace (Kärkkäinen & Joo 2021) publishes a ResNet-34 with 18 outputs, res34_fair_align_multi_7: 7 races,
2 genders, 9 ages. `transformers` has the network; the checkpoint names its tensors as torchvision does.
The classes are the data set's words for how a face looks to its annotators, and no fact about a person.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.align import CropSpec, crop_matrix, cut
from emolake.pipeline.faces.tracker import Sighting, Track
from emolake.pipeline.video.frame import Frame

CLASSES: dict[str, tuple[str, ...]] = {
    "race": (
        *("White", "Black", "Latino_Hispanic", "East Asian"),
        *("Southeast Asian", "Indian", "Middle Eastern"),
    ),
    "gender": ("male", "female"),
    "age": ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"),
}
"""In the order of the network's outputs."""

_OUTPUTS = sum(map(len, CLASSES.values()))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_CHIP = CropSpec(224, margin=-0.053, rise=0.154)
"""FairFace cuts its faces by dlib's face chip with a border of 0.25; of our crops this one shows most
nearly the same (found by search over seven faces: a mean correlation of 0.89)."""
_MOST_LOOKS = 3  # at a track
_LOOKS_APART_S = 1.0


class FairFace(nn.Module):
    """(N, 3, 224, 224) normalised -> (N, 18) logits."""

    def __init__(self) -> None:
        super().__init__()
        config = ResNetConfig(
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=[3, 4, 6, 3],
            layer_type="basic",
        )
        self.body = ResNetModel(config)
        self.fc = nn.Linear(512, _OUTPUTS)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.fc(self.body(pixel_values=pixels).pooler_output.flatten(1))
        return out

    @classmethod
    def read(cls, path: Path) -> FairFace:
        """A published checkpoint. UserError where the file is none."""
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            tensors = {_our_name(name): tensor for name, tensor in found.items()}
            network = cls()
            network.load_state_dict(tensors)
        except Exception as error:  # torch.load raises whatever a broken file makes it raise
            words = " ".join(str(error).split())[:200]
            raise UserError(
                f"faces.attributes: {path} is no FairFace checkpoint (res34_fair_align_multi_7): {words}"
            ) from None
        return network.eval().requires_grad_(False)


class AttributeEstimator:
    """Looks at a track a few times while its frames are at hand; its answer is the mean's."""

    def __init__(self, checkpoint: Path, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = FairFace.read(checkpoint).to(self._device)

    def look(self, frame: Frame, sighting: Sighting, track: Track) -> None:
        """frame: (H, W, 3) uint8 RGB, in whose pixels the sighting is."""
        looks = track.attribute_scores
        if len(looks) >= _MOST_LOOKS or sighting.time_s - track.judged_s < _LOOKS_APART_S:
            return
        track.judged_s = sighting.time_s
        matrix = crop_matrix(sighting.box, sighting.landmarks, _CHIP)
        looks.append(self.scores(cut(frame, matrix, _CHIP.size)[None])[0])

    @torch.inference_mode()
    def scores(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, 224, 224, 3) -> (N, 18): probabilities within race, gender and age."""
        pixels = torch.from_numpy(faces).to(self._device).permute(0, 3, 1, 2).float() / 255
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        logits = self._network((pixels - mean) / std)
        parts = logits.split([len(classes) for classes in CLASSES.values()], dim=1)
        return np.asarray(torch.cat([part.softmax(1) for part in parts], dim=1).cpu().numpy())


def attributes_of(track: Track) -> dict[str, str | None]:
    """The likeliest class of each attribute, null where nobody looked."""
    if not track.attribute_scores:
        return dict.fromkeys(CLASSES)
    mean = np.mean(track.attribute_scores, axis=0)
    told: dict[str, str | None] = {}
    at = 0
    for name, classes in CLASSES.items():
        told[name] = classes[int(mean[at : at + len(classes)].argmax())]
        at += len(classes)
    return told


def _our_name(name: str) -> str:
    """torchvision's name of a tensor -> `transformers`'."""
    part, _, leaf = name.rpartition(".")
    if part == "fc":
        return name
    if part in ("conv1", "bn1"):
        kind = "convolution" if part == "conv1" else "normalization"
        return f"body.embedder.embedder.{kind}.{leaf}"
    stage, block, *inner = part.split(".")
    place = f"body.encoder.stages.{int(stage.removeprefix('layer')) - 1}.layers.{block}"
    if inner[0] == "downsample":
        return f"{place}.shortcut.{('convolution', 'normalization')[int(inner[1])]}.{leaf}"
    kind = "convolution" if inner[0].startswith("conv") else "normalization"
    return f"{place}.layer.{int(inner[0][-1]) - 1}.{kind}.{leaf}"
