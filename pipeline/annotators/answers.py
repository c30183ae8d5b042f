"""Answers in words: written greedily in batches, and read for labels and action units.

EmoLA's and Emotion-LLaMA's papers read a label out of a sentence: sentences that deny something are
dropped, then keywords of the classes are looked for, the first sentence that has any speaks, and in it
the class named most often. The keyword lists are ours.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer

from emolake.pipeline.models.scoring import Prefill

_NEGATION = re.compile(
    r"\b(no|not|never|neither|nor|without|lacks?|absence|\w+n[\u2019']t)\b", re.I
)
_SENTENCE = re.compile(r"[^.!?;\n]+[.!?;\n]?")
_ACTION_UNIT = re.compile(r"\bAU\s*(\d+)", re.I)
_KEYWORDS = {
    "happiness": r"happ(?:y|ily|iness)|joy\w*|delight\w*|cheer\w*|content(?:ment|ed)|pleas(?:ed|ure)",
    "sadness": r"sad\w*|sorrow\w*|grief|unhapp\w+|melanchol\w+|depress\w+",
    "surprise": r"surpris\w*|astonish\w*|amaze\w*|shock\w*",
    "anger": r"ang(?:er|ry|rily)|rage|furious\w*|irritat\w*|annoy\w*|frustrat\w*",
    "disgust": r"disgust\w*|revulsion|repuls\w*|aversion",
    "fear": r"fear\w*|afraid|scared|terror|terrified|frighten\w*|panic\w*",
    "contempt": r"contempt\w*|disdain\w*|scorn\w*",
    "worry": r"worr(?:y|ied|ying)|anxi(?:ous|ety)",
    "doubt": r"doubt\w*|skeptic\w*|sceptic\w*",
    "neutral": r"neutral\w*|calm\w*|expressionless",
}
_PATTERNS = {label: re.compile(rf"\b(?:{words})\b", re.I) for label, words in _KEYWORDS.items()}


def read_label(answer: str, labels: tuple[str, ...]) -> str | None:
    """The label of `labels` that an answer gives; None where it gives none."""
    for sentence in _SENTENCE.findall(answer):
        if _NEGATION.search(sentence):
            continue
        counts = {
            label: len(_PATTERNS[label].findall(sentence)) for label in labels if label in _PATTERNS
        }
        if any(counts.values()):
            return max(counts, key=lambda label: counts[label])
    return None


def by_answer(scores: dict[str, float], answer: str | None) -> tuple[dict[str, float], list[str]]:
    """Scores that say what the answer says, and no more than that; as they were, and `label_answer` as
    what is absent, where it names no label."""
    label = read_label(answer or "", tuple(scores))
    if label is None:
        return scores, ["label_answer"]
    return {name: float(name == label) for name in scores}, []


def read_action_units(answer: str) -> list[str]:
    """`AU<number>` of each action unit that an answer names and does not deny, in numeric order."""
    numbers = {
        int(number)
        for sentence in _SENTENCE.findall(answer)
        if not _NEGATION.search(sentence)
        for number in _ACTION_UNIT.findall(sentence)
    }
    return [f"AU{number}" for number in sorted(numbers)]


def write_answers(prefill: Prefill, tokenizer: Tokenizer, eos: int, limit: int) -> list[str]:
    """The most likely answer to each prompt, greedily; one that is cut by the limit of `limit` tokens
    ends at its last whole sentence."""
    return [_text(ids, tokenizer, eos) for ids in prefill.written(limit, eos)]


def _text(ids: list[int], tokenizer: Tokenizer, eos: int) -> str:
    if eos in ids:
        return str(tokenizer.decode(ids[: ids.index(eos)])).strip()
    text = str(tokenizer.decode(ids)).strip()
    whole = re.match(r"(?s).*[.!?]", text)
    return whole.group() if whole else text
