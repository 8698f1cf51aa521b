import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tgsent.evaluation.metrics import Summary, calibration, doubts, score, summarize
from tgsent.records import Bin, LabelScores, Prediction

LABELS = ("negative", "positive")
WORDS = {"n": "negative", "p": "positive", "u": "neutral", "?": None}


def believed(*rows: tuple[str, float]) -> list[Prediction]:
    """Texts of a label, with the probability of `b`."""
    return [Prediction("", label, "b" if p >= 0.5 else "a", "", (1 - p, p)) for label, p in rows]


@pytest.mark.parametrize(
    ("rows", "ece", "auc"),
    [
        # by hand: bins 0.9 (2 of 2 right, distance 0.05) and 0.6 (1 of 2, distance 0.1)
        ([("b", 0.95), ("a", 0.05), ("b", 0.6), ("a", 0.6)], 0.075, 0.875),
        ([("b", 1.0), ("a", 0.0)], 0.0, 1.0),
        ([("a", 1.0), ("b", 0.0)], 1.0, 0.0),
        ([("a", 0.5)], 0.5, None),
    ],
)
def test_calibration(rows: list[tuple[str, float]], ece: float, auc: float | None) -> None:
    found = calibration(believed(*rows), ("a", "b"))
    assert found is not None
    assert found.ece == pytest.approx(ece)
    assert found.auc == (None if auc is None else pytest.approx(auc))
    assert sum(one.n for one in found.bins) == len(rows)


def test_without_probabilities_there_is_no_calibration() -> None:
    assert calibration([Prediction("", "a", "a", "a")], ("a", "b")) is None


def test_three_labels_have_no_single_roc_curve() -> None:
    predictions = [Prediction("", "a", "a", "a", (0.8, 0.1, 0.1))]
    found = calibration(predictions, ("a", "b", "c"))
    assert found is not None
    assert (found.ece, found.auc) == (pytest.approx(0.2), None)
    assert found.bins == (Bin(confidence=0.8, accuracy=1.0, n=1),)


def predictions(truth: str, answers: str) -> list[Prediction]:
    """Write each label as its first letter, and an answer that is no label as `?`."""
    return [
        Prediction("a text", WORDS[t] or "", WORDS[a], WORDS[a] or "well, yes")
        for t, a in zip(truth, answers, strict=True)
    ]


@pytest.mark.parametrize(
    ("truth", "answers", "macro_f1", "accuracy", "unparsed"),
    [
        ("np", "np", 1.0, 1.0, 0),
        ("np", "pn", 0.0, 0.0, 0),
        ("nnpp", "nppp", (2 / 3 + 4 / 5) / 2, 0.75, 0),
        ("nnnp", "nnnn", (6 / 7) / 2, 0.75, 0),  # all one answer
        ("nnpp", "pppp", (2 / 3) / 2, 0.5, 0),
        ("pp", "pp", 0.5, 1.0, 0),  # a label of which there is no text
        ("nnpp", "n?pp", (2 / 3 + 1) / 2, 0.75, 1),
        ("nnpp", "??pp", 0.5, 0.5, 2),
        ("np", "??", 0.0, 0.0, 2),
        ("n", "n", 0.5, 1.0, 0),
    ],
)
def test_score_known_values(
    truth: str, answers: str, macro_f1: float, accuracy: float, unparsed: int
) -> None:
    result = score(predictions(truth, answers), LABELS)
    assert result.macro_f1 == pytest.approx(macro_f1)
    assert result.accuracy == pytest.approx(accuracy)
    assert result.unparsed == unparsed


def test_score_per_label_and_confusion() -> None:
    result = score(predictions("nnnppp", "nn?pnp"), LABELS)
    assert result.per_label == {
        "negative": LabelScores(2 / 3, 2 / 3, pytest.approx(2 / 3), support=3),
        "positive": LabelScores(1.0, 2 / 3, pytest.approx(0.8), support=3),
    }
    assert result.confusion == {
        "negative": {"negative": 2, "positive": 0, "": 1},
        "positive": {"negative": 1, "positive": 2, "": 0},
    }


def test_confusion_has_a_column_for_no_label_only_where_needed() -> None:
    result = score(predictions("np", "pp"), LABELS)
    assert result.confusion == {
        "negative": {"negative": 0, "positive": 1},
        "positive": {"negative": 0, "positive": 1},
    }


@given(st.lists(st.tuples(st.sampled_from("npu"), st.sampled_from("npu?")), min_size=1))
def test_score_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    labels = ("negative", "neutral", "positive")
    given = predictions("".join(t for t, _ in pairs), "".join(a for _, a in pairs))
    truth = [p.label for p in given]
    answers = [p.predicted or "no label" for p in given]
    expected = f1_score(truth, answers, labels=labels, average="macro", zero_division=0)
    result = score(given, labels)
    assert result.macro_f1 == pytest.approx(expected)
    assert list(result.per_label) == list(labels)
    assert sum(sum(row.values()) for row in result.confusion.values()) == len(given)
    assert sum(row[label] for label, row in result.confusion.items()) == pytest.approx(
        result.accuracy * len(given)
    )


def test_summarize_of_three_trials() -> None:
    half = 4.302653 * 0.02 / math.sqrt(3)  # Student's t with 2 degrees of freedom
    result = summarize([0.8, 0.82, 0.84])
    assert result.mean == pytest.approx(0.82)
    assert result.std == pytest.approx(0.02)
    assert result.ci95 == pytest.approx([0.82 - half, 0.82 + half])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Summary()),
        ([0.7], Summary(0.7)),
        ([0.5, 0.5], Summary(0.5, 0.0, (0.5, 0.5))),
    ],
)
def test_summarize_of_few_trials(values: list[float], expected: Summary) -> None:
    assert summarize(values) == expected


@pytest.mark.parametrize(
    ("truth", "answers", "said"),
    [
        ("npnp", "nppn", []), ("npnp", "nnnn", ['answers "negative" to every text']),
        ("npnp", "????", ["no answer is a label"]),
        ("npnp", "n?nn", ['never answers "positive"']),
        ("npunpu", "nnppnp", ['never answers "neutral"']),
        ("npunpu", "nnnnnn", ['answers "negative" to every text']),
        ("npunpu", "n?nnnn", ['never answers "neutral", "positive"']),
        ("npunpu", "npu???", []),
    ],
)  # fmt: skip
def test_doubts(truth: str, answers: str, said: list[str]) -> None:
    labels = sorted({WORDS[letter] or "" for letter in truth})
    assert doubts(score(predictions(truth, answers), labels)) == said
