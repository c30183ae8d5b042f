"""One colour for each emotion, everywhere.

Okabe and Ito's colours, told apart with every common kind of colour blindness.
"""

from __future__ import annotations

PALETTE = {
    "anger": "#D55E00",
    "disgust": "#009E73",
    "fear": "#CC79A7",
    "happiness": "#E69F00",
    "neutral": "#8C8C8C",
    "sadness": "#0072B2",
    "surprise": "#56B4E9",
    "contempt": "#B8A800",
}
_OTHER = "#5B5B5B"


def colour(emotion: str) -> str:
    """As #RRGGBB."""
    return PALETTE.get(emotion, _OTHER)


def rgb(emotion: str) -> tuple[int, int, int]:
    value = colour(emotion)
    return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
