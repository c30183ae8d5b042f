"""Prompts as token ids: the Vicuna v1 template, the question, the optional attribute sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import ATTRIBUTES

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
IMAGE_TOKEN = -200
"""Placeholder id in a prompt: here visual tokens go (LLaVA's convention)."""


def emotion_question(labels: tuple[str, ...]) -> str:
    """The question that names the label set; also what the Q-Former reads."""
    return f"What emotion does this face show? Answer with one word of: {', '.join(labels)}."


def attribute_sentence(attributes: Mapping[str, str]) -> str:
    """EMO-LLaMA's handcrafted age-gender-race prompt; empty where nothing is known.

    The paper says what the sentence is for ("considering the emotional differences across human
    groups") and not how it reads; the wording is ours.
    """
    known = [f"{name} {attributes[name]}" for name in ATTRIBUTES if attributes.get(name)]
    if not known:
        return ""
    return f"The person is of {', '.join(known)}; consider how groups differ in expression. "


def transcript_sentence(transcript: str | None) -> str:
    """What the person says, for a model that was tuned to read it; empty where nothing is said."""
    said = " ".join((transcript or "").split())
    return f'The person says: "{said}". ' if said else ""


@dataclass(frozen=True)
class Told:
    """What an example asks beside its pictures, and the answer. question null: the emotion question of
    the label set; answer null: the label; attributes: (name, value) of what is known of the person."""

    question: str | None = None
    answer: str | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    transcript: str | None = None


@dataclass(frozen=True)
class PromptTokens:
    """ids: the prompt with IMAGE_TOKEN where the visual tokens go; labels: token ids of each label
    as they follow the prompt; question: ids for the Q-Former."""

    ids: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    question: tuple[int, ...]


class Prompter:
    """Builds prompts with a model's two tokenizers."""

    def __init__(self, tokenizer: Tokenizer, question_tokenizer: Tokenizer, limit: int) -> None:
        self.tokenizer = tokenizer
        self.question_tokenizer = question_tokenizer
        self.question_limit = limit
        bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        if bos is None or eos is None:
            raise UserError(f"the tokenizer has no {BOS} and {EOS}; it is not a LLaMA tokenizer")
        self.bos, self.eos = bos, eos

    def emotion(
        self,
        labels: tuple[str, ...],
        attributes: Mapping[str, str] | None = None,
        transcript: str | None = None,
    ) -> PromptTokens:
        """The prompt that asks for one label of `labels`."""
        return self.asked(emotion_question(labels), labels, attributes, transcript)

    def asked(
        self,
        question: str,
        answers: tuple[str, ...],
        attributes: Mapping[str, str] | None = None,
        transcript: str | None = None,
    ) -> PromptTokens:
        """The prompt that asks any question; its labels are the possible answers."""
        context = transcript_sentence(transcript) + attribute_sentence(attributes or {})
        before = self.encode(f"{SYSTEM} USER: ")
        tail = f"\n{context}{question} ASSISTANT:"
        after = self.encode(tail)
        spelled = tuple(self._continuation(tail, after, f" {answer}") for answer in answers)
        return PromptTokens(
            ids=(self.bos, *before, IMAGE_TOKEN, *after),
            labels=spelled,
            question=self._question_ids(question),
        )

    def answer(self, label: str, end: str = " ASSISTANT:") -> tuple[int, ...]:
        """Token ids of a label as it follows a prompt's `end`."""
        return self._continuation(end, self.encode(end), f" {label}")

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids without special ones."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _continuation(self, text: str, ids: tuple[int, ...], more: str) -> tuple[int, ...]:
        both = self.encode(text + more)
        if both[: len(ids)] != ids:
            raise UserError(f"the tokenizer joins the answer {more!r} to the prompt before it")
        return both[len(ids) :]

    def _question_ids(self, question: str) -> tuple[int, ...]:
        """Special tokens as the tokenizer's own file adds them; cut on the left (LLaMA-VID)."""
        return tuple(self.question_tokenizer.encode(question).ids[-self.question_limit :])


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE that can spell any text and holds the words of `texts` whole."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[UNKNOWN, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizers` file; UserError where it is missing or malformed."""
    if not path.exists():
        raise UserError(f"{path} is missing; a model folder holds its tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a tokenizer file: {error}") from None
