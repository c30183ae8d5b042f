"""Emotion-LLaMA's three features of a clip, by encoders of `transformers` from folders the user names.

An utterance's feature is the mean over time, as the MER2023 baseline makes its "UTT" features: for HuBERT
of the sum of the last four layers, for the two MAEs of the last layer. Where no encoder is named, or a
clip has no sound, the feature is zeros, as the reference fills in what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emolake.pipeline.annotators.pixels import Normaliser, decoded, for_device, on_device
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.models.catalog import folder_of

_LAYERS = 4
_FEWEST_SAMPLES = 400  # HuBERT's first receptive field


Clip = tuple[list[bytes], list[bytes], NDArray[np.int16] | None]
"""Encoded face crops, encoded whole frames, and the sound of one clip."""


@dataclass(frozen=True)
class Clips:
    """What can be made ready without the device. counts: faces of each clip; faces (N, S, S, 3) and frames
    (B * F, S, S, 3) uint8 of all of them, None where nobody reads them; sounds: those of one length together,
    (n, samples) int16, and which clips they are of; none where there is too little."""

    counts: list[int]
    faces: Tensor | None
    frames: Tensor | None
    sounds: list[tuple[list[int], Tensor]]


class ClipEncoders:
    """face_mae, video_mae, audio: folders of `transformers` models, or None. dim: of each feature."""

    def __init__(
        self,
        face_mae: str | None,
        video_mae: str | None,
        audio: str | None,
        dim: int,
        device: torch.device,
    ) -> None:
        self.dim = dim
        self.device = device
        self._face = _Encoder("face_mae", face_mae, "ViTMAEModel", dim, device, mask_ratio=0.0)
        self._clip = _Encoder("video_mae", video_mae, "VideoMAEModel", dim, device)
        self._audio = _Encoder("audio_encoder", audio, "HubertModel", dim, device)

    def prepared(self, clips: Sequence[Clip]) -> Clips:
        faces = [face for of_clip, _, _ in clips for face in of_clip]
        chosen = [frames[k] for _, frames, _ in clips for k in self._spread(len(frames))]
        return Clips(
            counts=[len(of_clip) for of_clip, _, _ in clips],
            faces=None if self._face.model is None else self._face.decoded(faces),
            frames=None if self._clip.model is None else self._clip.decoded(chosen),
            sounds=self._heard([sound for _, _, sound in clips]),
        )

    def _spread(self, count: int) -> list[int]:
        """Which of so many frames the clip's encoder sees."""
        if self._clip.model is None:
            return []
        wanted: int = self._clip.model.config.num_frames
        chosen: list[int] = np.linspace(0, count - 1, wanted).round().astype(int).tolist()
        return chosen

    def _heard(self, sounds: Sequence[NDArray[np.int16] | None]) -> list[tuple[list[int], Tensor]]:
        """By length, since padding would change what the encoder hears; windows are mostly of one."""
        if self._audio.model is None:
            return []
        of_length: dict[int, list[tuple[int, NDArray[np.int16]]]] = {}
        for k, sound in enumerate(sounds):
            if sound is not None and len(sound) >= _FEWEST_SAMPLES:
                of_length.setdefault(len(sound), []).append((k, sound))
        return [
            ([k for k, _ in some], for_device(np.stack([sound for _, sound in some]), self.device))
            for some in of_length.values()
        ]

    @torch.inference_mode()
    def __call__(self, clips: Clips) -> Tensor:
        """(B, 3, dim) float32: of the faces, of the frames and of the sound."""
        told = [self._of_faces(clips), self._of_frames(clips), self._of_sounds(clips)]
        return torch.stack(told, dim=1)

    def _of_faces(self, clips: Clips) -> Tensor:
        if clips.faces is None:
            return self._nothing(len(clips.counts))
        hidden = self._face.model(pixel_values=self._face.pixels(clips.faces)).last_hidden_state
        return torch.stack([of.mean(0) for of in hidden[:, 0].split(clips.counts)]).float()

    def _of_frames(self, clips: Clips) -> Tensor:
        if clips.frames is None:
            return self._nothing(len(clips.counts))
        pixels = self._clip.pixels(clips.frames).unflatten(0, (len(clips.counts), -1))
        hidden: Tensor = self._clip.model(pixel_values=pixels).last_hidden_state
        return hidden.mean(1).float()

    def _of_sounds(self, clips: Clips) -> Tensor:
        told = list(self._nothing(len(clips.counts)))
        for places, sounds in clips.sounds:
            waves = sounds.to(self.device, non_blocking=True).float() / 32768
            spread = (waves.var(1, correction=0, keepdim=True) + 1e-7).sqrt()
            waves = (waves - waves.mean(1, keepdim=True)) / spread
            hidden = self._audio.model(waves, output_hidden_states=True).hidden_states
            features = torch.stack(hidden[-_LAYERS:]).sum(0).mean(1).float()
            for place, feature in zip(places, features, strict=True):
                told[place] = feature
        return torch.stack(told)

    def _nothing(self, count: int) -> Tensor:
        return torch.zeros(count, self.dim, device=self.device)


class _Encoder:
    """A model of `transformers` by class name, from safetensors in a folder; or none."""

    def __init__(
        self,
        option: str,
        folder: str | None,
        kind: str,
        dim: int,
        device: torch.device,
        **config: Any,
    ) -> None:
        self.model: Any = None
        if folder is None:
            return
        import transformers

        path = folder_of(folder, f"annotator.{option}")
        try:
            # What a checkpoint lacks is told below in one line, and not in the library's pages.
            transformers.utils.logging.set_verbosity_error()
            self.model, told = getattr(transformers, kind).from_pretrained(
                path, local_files_only=True, weights_only=True, output_loading_info=True, **config
            )
        except Exception as error:  # whatever the library's loaders raise
            words = in_a_line(error, 200)
            raise UserError(f"annotator.{option} {folder} cannot be loaded: {words}") from None
        missing = sorted(told["missing_keys"])
        if missing:
            raise UserError(
                f"annotator.{option} {folder} is no {kind}: it lacks {len(missing)} tensors, {missing[0]}"
            )
        found = self.model.config.hidden_size
        if found != dim:
            raise UserError(
                f"annotator.{option} {folder} gives {found} values, the model reads {dim}"
            )
        self.model = self.model.to(device).eval()
        if (
            kind == "VideoMAEModel"
        ):  # its positions are no buffer: they would travel with every batch
            places = self.model.embeddings
            places.position_embeddings = places.position_embeddings.to(device)
        # ImageNet's statistics, as both MAEs were trained.
        self._normalise = Normaliser([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], device)
        self._device = device

    def decoded(self, encoded: list[bytes]) -> Tensor:
        """(N, H, W, 3) uint8."""
        return for_device(np.stack(decoded(encoded, self._device)), self._device)

    def pixels(self, pictures: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, S, S) float32, normalised; S is the model's."""
        pixels = on_device(pictures, self._device)
        size = self.model.config.image_size
        if pixels.shape[-1] != size:
            pixels = torch.nn.functional.interpolate(
                pixels, size=(size, size), mode="bilinear", antialias=True
            )
        return self._normalise(pixels)
