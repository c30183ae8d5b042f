"""Speech recognition where a video has no transcript: a Whisper checkpoint of `transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.models.catalog import folder_of
from emolake.pipeline.video.sound import RATE, Sound
from emolake.pipeline.video.transcripts import Cue

_SHORTEST_S = 0.1


class SpeechRecognizer:
    """name: of a Whisper checkpoint with its tokenizer and feature extractor, a folder or a hub's."""

    def __init__(self, name: str, device: str) -> None:
        import transformers

        folder = folder_of(name, "annotator.recognizer")
        transformers.utils.logging.set_verbosity_error()
        try:
            model = transformers.WhisperForConditionalGeneration.from_pretrained(
                folder,
                local_files_only=True,
                weights_only=True,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            )
            self._pipeline: Any = transformers.pipeline(
                "automatic-speech-recognition",
                model=model,
                tokenizer=transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                ),
                feature_extractor=transformers.WhisperFeatureExtractor.from_pretrained(
                    folder, local_files_only=True
                ),
                device=device,
            )
        except Exception as error:  # whatever the library's loaders raise
            words = in_a_line(error, 200)
            raise UserError(f"annotator.recognizer {name} cannot be loaded: {words}") from None

    def __call__(self, sound: Sound) -> list[Cue]:
        """What is said in it, by Whisper's own segments and timestamps; longer than its 30 seconds by
        its own way of moving on. A segment without an end lasts to the end of the sound."""
        length_s = len(sound.samples) / RATE
        if length_s < _SHORTEST_S:
            return []
        raw = sound.samples.astype(np.float32) / 32768
        told = self._pipeline({"raw": raw, "sampling_rate": RATE}, return_timestamps=True)
        cues = []
        begun = 0.0
        for chunk in told.get("chunks", ()):
            start, end = chunk["timestamp"]
            start = begun if start is None else float(start)
            end = length_s if end is None else min(float(end), length_s)
            text = " ".join(chunk["text"].split())
            if text and end > start:
                cues.append(Cue(sound.start_s + start, sound.start_s + end, text))
                begun = end
        return cues
