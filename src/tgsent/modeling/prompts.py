"""Texts and labels to prompts and targets, and generated text back to labels."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from tgsent.config import PromptConfig, TrialSpec
from tgsent.errors import ConfigError
from tgsent.records import Encoded, Example

EncodeTexts = Callable[[list[str]], list[list[int]]]
"""Token ids of each text, without any special tokens added around it."""

_ANY_TEXT = "a"
"""Stands for any text, so that what follows it is encoded as a continuation."""

_TEXTS_AT_ONCE = 10_000  # bounds memory: a tokenizer returns more per text than the ids kept


def render_prompt(prompt: PromptConfig, text: str) -> str:
    """Return the prompt of a text. Braces in the text are left as they are."""
    before, after = prompt.input.split("{text}")
    return before + text + after


def render_target(prompt: PromptConfig, label: str) -> str:
    """Return the target of a label; in a chat, it is stripped of whitespace."""
    target = prompt.target.replace("{label}", prompt.word(label))
    return target.strip() if prompt.template == "chat" else target


def parse(prompt: PromptConfig, labels: Iterable[str], generated: str) -> str | None:
    """Return the label whose target was generated, or None.

    The whole generated text must be the target, except for whitespace: `positive I think` and
    `Positive` are no labels, so that no unclear answer is counted.
    """
    answer = generated.split()
    return next((one for one in labels if answer == render_target(prompt, one).split()), None)


def choose_shots(train: Sequence[Example], spec: TrialSpec) -> tuple[Example, ...]:
    """Draw the worked examples of a few-shot prompt from training texts, label by label in turn."""
    rng = random.Random(spec.seed)
    by_label = {label: [one for one in train if one.label == label] for label in spec.labels}
    order = rng.sample(spec.labels, len(spec.labels))
    chosen: list[Example] = []
    while len(chosen) < spec.prompt.shots and any(by_label.values()):
        label = order[len(chosen) % len(order)]
        if candidates := by_label[label]:
            chosen.append(candidates.pop(rng.randrange(len(candidates))))
        else:
            order.remove(label)
    return tuple(chosen)


def without_shots(train: Sequence[Example], shots: Sequence[Example]) -> list[Example]:
    """Return the texts to train on: every prompt shows the worked examples with their labels."""
    return [example for example in train if example not in shots]


@dataclass
class PromptEncoder:
    r"""Encode prompts and targets for one tokenizer.

    A training text is the prompt's tokens and then the target's, encoded separately, so that the
    test prompt is its prefix token for token. The prompt is `start + head and text + tail + stop`.
    Head and text are encoded together (`Tweet: I` contains the one token for ` I`), the tail
    (`\nSentiment:`) separately, so that a long text is truncated at its own end and nowhere else.
    Each part is encoded as a continuation of the one before it, because some tokenizers (Llama 2's,
    Mistral's) prepend a space to every string.

    Raises ConfigError where the template leaves no room in `max_tokens`.
    """

    prompt: PromptConfig
    labels: tuple[str, ...]
    encode_texts: EncodeTexts
    special_ids: Set[int]
    """Ids that no text may produce."""
    end_id: int
    """Ends every target."""
    max_tokens: int
    start_ids: tuple[int, ...] = ()
    """Begins every prompt; `start` is added to it."""
    start: str = ""
    """Markup that the head follows; empty at the beginning of a text. It may contain special
    tokens, as may `stop`."""
    stop: str = ""
    """Markup that the target follows."""
    stop_ids: tuple[int, ...] = ()
    """Ends every prompt after `stop` (seq2seq models read prompts that end in the EOS token)."""
    target_counts: bool = True
    """Whether `max_tokens` bounds prompt and target together, or the prompt alone."""
    truncated: int = field(default=0, init=False)
    """Number of texts truncated so far."""
    truncated_tokens: int = field(default=0, init=False)
    """How many tokens they lost."""

    _numbers: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.start_ids = (*self.start_ids, *self._encode_markup(self.start))
        self.stop_ids = (*self._encode_markup(self.stop), *self.stop_ids)
        self._head, tail = self.prompt.input.split("{text}")
        (tail_ids,) = self._encode(_ANY_TEXT, [tail]) if tail else [[]]
        self.tail_ids = tuple(tail_ids)
        # the decoder of a seq2seq model begins with the target
        before = (self.stop or tail or self._head or _ANY_TEXT) if self.target_counts else ""
        targets = [render_target(self.prompt, label) for label in self.labels]
        encoded = [(*ids, self.end_id) for ids in self._encode(before, targets)]
        self.targets: dict[str, tuple[int, ...]] = dict(zip(self.labels, encoded, strict=True))
        around = len(self.start_ids) + len(self.tail_ids) + len(self.stop_ids)
        if self.target_counts:
            around += max(map(len, self.targets.values()))
        self.room = self.max_tokens - around
        needed = around + len(self._encode_data(self._head)) + 1
        if needed > self.max_tokens:
            raise ConfigError(
                f"training.max_tokens: {self.max_tokens} leaves no room for any text:"
                f" the prompt and the longest label take {needed - 1} tokens"
            )

    def encode_prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Encode the prompt of each text."""
        return list(map(self._prompt, self._encode(self.start, texts, self._head)))

    def encode_bare(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Encode texts alone: nothing is added, truncated or counted."""
        return self._encode("", texts)

    def _prompt(self, body: list[int]) -> tuple[int, ...]:
        if (lost := len(body) - self.room) > 0:
            self.truncated += 1
            self.truncated_tokens += lost
        prompt = (*self.start_ids, *body[: self.room], *self.tail_ids, *self.stop_ids)
        # equal ids share one object of 28 bytes, which otherwise would be most of a prompt's memory
        return tuple(map(self._numbers.setdefault, prompt, prompt))

    def encode_examples(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode prompt and target of each example."""
        prompts = self.encode_prompts([example.text for example in examples])
        targets = [self.targets[example.label] for example in examples]
        return list(map(Encoded, prompts, targets))

    def _encode(self, before: str, texts: Sequence[str], head: str = "") -> Iterator[list[int]]:
        """Encode `head` and each text as a continuation of `before`, without any special token."""
        is_text = self.special_ids.isdisjoint
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = [head + text for text in texts[start : start + _TEXTS_AT_ONCE]]
            for text, ids in zip(some, self._encode_after(before, some), strict=True):
                yield ids if ids is not None and is_text(ids) else self._encode_data(text)

    def _encode_markup(self, markup: str) -> list[int]:
        """Encode markup as a continuation; it may contain special tokens."""
        if not markup:
            return []
        (ids,) = self._encode_after(_ANY_TEXT, [markup])
        return self.encode_texts([markup])[0] if ids is None else ids

    def _encode_after(self, before: str, texts: Sequence[str]) -> list[list[int] | None]:
        """Encode each text as a continuation of `before`; None where a token spans the border."""
        if not before:
            return [*self.encode_texts(list(texts))]
        first, *both = self.encode_texts([before, *(before + text for text in texts)])
        start = len(first)
        return [ids[start:] if ids[:start] == first else None for ids in both]

    def _encode_data(self, text: str) -> list[int]:
        """Encode a text without letting any part of it become a special token.

        Tokenizers find special tokens in any text, some even after normalising it (T5's turns
        full-width signs into `</s>`), and no setting of theirs prevents all of it. A text in which
        they find one is therefore halved until they find none.
        """
        (ids,) = self.encode_texts([text])
        if self.special_ids.isdisjoint(ids):
            return ids
        if len(text) <= 1:
            return [i for i in ids if i not in self.special_ids]
        middle = len(text) // 2
        return self._encode_data(text[:middle]) + self._encode_data(text[middle:])
