"""Emotion-LLaMA's three features of a clip, by encoders of `transformers` from folders the user names.

An utterance's feature is the mean over time, as the MER2023 baseline makes its "UTT" features: for HuBERT
of the sum of the last four layers, for the two MAEs of the last layer. Where no encoder is named, or a
clip has no sound, the feature is zeros, as the reference fills in what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emolake.pipeline.annotators.pixels import Normaliser, stacked
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.faces.encoding import decode_crop

_LAYERS = 4
_FEWEST_SAMPLES = 400  # HuBERT's first receptive field


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

    @torch.inference_mode()
    def __call__(
        self, faces: list[bytes], frames: list[bytes], sound: NDArray[np.int16] | None
    ) -> Tensor:
        """Encoded face crops and whole frames of one clip, and its sound -> (3, dim) float32."""
        return torch.stack([self._of_faces(faces), self._of_clip(frames), self._of_sound(sound)])

    def _of_faces(self, faces: list[bytes]) -> Tensor:
        model = self._face.model
        if model is None:
            return self._nothing()
        hidden = model(pixel_values=self._face.pictures(faces)).last_hidden_state
        return hidden[:, 0].mean(0).float()

    def _of_clip(self, frames: list[bytes]) -> Tensor:
        model = self._clip.model
        if model is None:
            return self._nothing()
        wanted = model.config.num_frames
        chosen = np.linspace(0, len(frames) - 1, wanted).round().astype(int)
        pixels = self._clip.pictures([frames[k] for k in chosen])
        return model(pixel_values=pixels[None]).last_hidden_state[0].mean(0).float()

    def _of_sound(self, sound: NDArray[np.int16] | None) -> Tensor:
        model = self._audio.model
        if model is None or sound is None or len(sound) < _FEWEST_SAMPLES:
            return self._nothing()
        wave = torch.from_numpy(sound.astype(np.float32) / 32768).to(self.device)
        wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        hidden = model(wave[None], output_hidden_states=True).hidden_states
        return torch.stack(hidden[-_LAYERS:]).sum(0)[0].mean(0).float()

    def _nothing(self) -> Tensor:
        return torch.zeros(self.dim, device=self.device)


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

        if not Path(folder).is_dir():
            raise UserError(f"annotator.{option} {folder} is no folder of a model")
        try:
            # What a checkpoint lacks is told below in one line, and not in the library's pages.
            transformers.utils.logging.set_verbosity_error()
            self.model, told = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, weights_only=True, output_loading_info=True, **config
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
        # ImageNet's statistics, as both MAEs were trained.
        self._normalise = Normaliser([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], device)
        self._device = device

    def pictures(self, encoded: list[bytes]) -> Tensor:
        """(N, 3, S, S) float32, normalised; S is the model's."""
        pixels = stacked([decode_crop(data) for data in encoded], self._device)
        size = self.model.config.image_size
        if pixels.shape[-1] != size:
            pixels = torch.nn.functional.interpolate(
                pixels, size=(size, size), mode="bilinear", antialias=True
            )
        return self._normalise(pixels)
