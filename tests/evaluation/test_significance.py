import random
import time
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score
from sklearn.utils import resample

from tgsent.evaluation.significance import (
    Answers,
    Comparison,
    bootstrap,
    compare,
    holm,
    interval,
    mcnemar,
    needed,
)

LABELS = ("a", "b")


def answered(
    rng: random.Random, n: int, accuracy: float, labels: tuple[str, ...] = LABELS
) -> Answers:
    """Answers to n texts of all labels by turns, so often right."""
    truth = [labels[i % len(labels)] for i in range(n)]
    return [
        (str(i), t, t if rng.random() < accuracy else rng.choice([x for x in labels if x != t]))
        for i, t in enumerate(truth)
    ]


def other_texts(answers: Answers, prefix: object) -> Answers:
    """The same answers to other texts."""
    return [(f"{prefix} {text}", label, said) for text, label, said in answers]


def macro_f1(answers: Answers, labels: tuple[str, ...] = LABELS) -> float:
    """Macro-F1 by counting, as scikit-learn's takes milliseconds to check its arguments."""
    counts = Counter((t, s) for _, t, s in answers)
    of_truth, of_said = Counter(t for _, t, _ in answers), Counter(s for _, _, s in answers)
    both = ((of_truth[label] + of_said[label], counts[label, label]) for label in labels)
    return sum(2 * right / said if said else 0.0 for said, right in both) / len(labels)


def test_the_score_is_that_of_scikit_learn() -> None:
    labels = ("a", "b", "c", "d")
    answers = [(x, t, s if int(x[-1]) else None) for x, t, s in answered(random.Random(3), 90, 0.6)]
    answers += answered(random.Random(4), 90, 0.6, labels)
    truth, said = zip(*((t, s or "") for _, t, s in answers), strict=True)
    expected = f1_score(truth, said, labels=labels, average="macro", zero_division=0)
    assert macro_f1(answers, labels) == pytest.approx(expected)


# ------------------------------------------------------------------------------------ bootstrap


def test_the_bootstrap_is_that_of_drawing_texts_one_by_one() -> None:
    rng = random.Random(1)
    labels = ("a", "b", "c")
    one = [
        (x, t, s if i % 11 else None) for i, (x, t, s) in enumerate(answered(rng, 90, 0.7, labels))
    ]
    other = answered(rng, 90, 0.6, labels)
    draws = bootstrap([{"one": one, "other": other}], labels)
    truth = [t for _, t, _ in one]
    plain = []
    for seed in range(1_500):
        rows = resample(range(90), stratify=truth, random_state=seed)
        plain.append([macro_f1([answers[i] for i in rows], labels) for answers in (one, other)])
    for column, name in enumerate(("one", "other")):
        expected = np.array(plain)[:, column]
        assert draws[name].mean() == pytest.approx(expected.mean(), abs=0.004)
        assert draws[name].std() == pytest.approx(expected.std(), rel=0.08)
    difference = np.array(plain)[:, 0] - np.array(plain)[:, 1]
    assert (draws["one"] - draws["other"]).std() == pytest.approx(difference.std(), rel=0.08)


def test_the_mean_over_trials_is_drawn() -> None:
    rng = random.Random(2)
    trials = [{"m": other_texts(answered(rng, 200, 0.8), k)} for k in range(4)]
    alone = bootstrap(trials[:1], LABELS)["m"]
    together = bootstrap(trials, LABELS)["m"]
    assert together.mean() == pytest.approx(np.mean([macro_f1(t["m"]) for t in trials]), abs=0.003)
    assert together.std() == pytest.approx(alone.std() / 2, rel=0.15)


def test_a_text_of_several_trials_is_one_text() -> None:
    """Answered alike four times, it tells as much as once; and so do texts that repeat."""
    own = answered(random.Random(11), 200, 0.8)
    once = bootstrap([{"m": own}], LABELS)["m"]
    assert bootstrap([{"m": own}] * 4, LABELS)["m"].std() == pytest.approx(once.std(), rel=0.05)
    repeated = bootstrap([{"m": [*own, *own]}], LABELS)["m"]
    assert repeated.std() == pytest.approx(once.std(), rel=0.05)
    better = [(x, t, t if i % 10 else s) for i, (x, t, s) in enumerate(own)]
    pair = {"x": better, "y": own}
    scores = {m: dict.fromkeys((1, 2, 3), macro_f1(a)) for m, a in pair.items()}
    (one,) = compare({1: pair}, {m: {1: own[1]} for m, own in scores.items()}, LABELS)
    (three,) = compare(dict.fromkeys((1, 2, 3), pair), scores, LABELS)
    assert (three.n, three.only_first, three.p_value) == (200, one.only_first, one.p_value)


def test_some_texts_in_common_are_drawn_as_one_by_one() -> None:
    rng = random.Random(12)
    shared, first, second, again = (other_texts(answered(rng, 60, 0.7), k) for k in "sabs")
    trials = [[*first, *shared], [*second, *again]]
    draws = bootstrap([{"m": own} for own in trials], LABELS)["m"]
    truth = [t for _, t, _ in first]
    plain = []
    for seed in range(1_500):
        rows, a, b = (
            resample(range(60), stratify=truth, random_state=3 * seed + k) for k in range(3)
        )
        scores = [
            macro_f1([*(own[i] for i in alone), *(own[60 + i] for i in rows)])
            for own, alone in zip(trials, (a, b), strict=True)
        ]
        plain.append(np.mean(scores))
    assert draws.std() == pytest.approx(np.std(plain), rel=0.08)


def test_forty_trials_take_seconds() -> None:
    rng = random.Random(15)
    texts = answered(rng, 10_000, 0.8)
    trials = [{m: rng.sample(texts, 500) for m in "x"} for _ in range(40)]
    started = time.perf_counter()
    low, high = interval(bootstrap(trials, LABELS)["x"])
    assert low < np.mean([macro_f1(t["x"]) for t in trials]) < high
    assert time.perf_counter() - started < 20


def test_very_many_answers_take_little_memory() -> None:
    labels = tuple(map(str, range(50)))
    rng = random.Random(13)
    trials = [{"m": other_texts(answered(rng, 500, 0.5, labels), k)} for k in range(10)]
    low, high = interval(bootstrap(trials, labels)["m"])
    assert low < np.mean([macro_f1(t["m"], labels) for t in trials]) < high


@pytest.mark.parametrize("trials", [1, 3])
def test_no_luck_where_no_weight_changes_the_score(trials: int) -> None:
    """A model that is always right, and one that always says the same, beside a rare label."""
    truth = ["a"] * 49 + ["b"]
    perfect = [{"m": [(f"{k} {i}", t, t) for i, t in enumerate(truth)]} for k in range(trials)]
    constant = [{"m": [(x, t, "a") for x, t, _ in one["m"]]} for one in perfect]
    assert interval(bootstrap(perfect, LABELS)["m"]) == pytest.approx((1, 1))
    low, high = interval(bootstrap(constant, LABELS)["m"])
    assert low == pytest.approx(high)


def test_no_luck_where_all_answers_are_right() -> None:
    draws = bootstrap([{"m": [("1", "a", "a"), ("2", "b", "b")]}], LABELS)["m"]
    assert interval(draws) == (1.0, 1.0)


def test_a_label_without_texts_and_answers_that_are_no_label() -> None:
    draws = bootstrap([{"m": [("1", "a", "a"), ("2", "a", None)]}], ("a", "b"))["m"]
    assert 0.49 < draws.max() < 0.5
    assert 0 < draws.min() < 0.01


def test_the_same_answers_give_the_same_interval() -> None:
    trial = [{"m": answered(random.Random(3), 100, 0.8)}]
    assert interval(bootstrap(trial, LABELS)["m"]) == interval(bootstrap(trial, LABELS)["m"])


def test_three_models_and_trials_of_500_texts_take_less_than_two_seconds() -> None:
    rng = random.Random(4)
    trials = {k: {m: other_texts(answered(rng, 500, 0.8), k) for m in "xyz"} for k in (1, 2, 3)}
    scores = {m: {k: macro_f1(trials[k][m]) for k in trials} for m in "xyz"}
    started = time.perf_counter()
    compare(trials, scores, LABELS)
    bootstrap(list(trials.values()), LABELS)
    assert time.perf_counter() - started < 2


def test_intervals_of_several_trials_hold_the_truth_as_well() -> None:
    """Three trials that share a third of their texts; four labels, one of them rare."""
    rng = np.random.default_rng(14)
    labels = ("a", "b", "c", "d")
    own, runs, held = {"a": 40, "b": 40, "c": 40, "d": 16}, 1_000, 0

    def texts(numbers: dict[str, int], prefix: str) -> Answers:
        found = []
        for label, number in numbers.items():
            hits = rng.random(number) < 0.75
            wrong = rng.choice([x for x in labels if x != label], number)
            found += [
                (f"{prefix} {label} {i}", label, label if hit else str(other))
                for i, (hit, other) in enumerate(zip(hits, wrong, strict=True))
            ]
        return found

    many = texts({label: 2_000 * number for label, number in own.items()}, "")
    truth = macro_f1(many, labels)
    third = {label: number // 2 for label, number in own.items()}
    for _ in range(runs):
        shared = texts(third, "shared")
        trials = [{"m": [*texts(own, str(k)), *shared]} for k in range(3)]
        low, high = interval(bootstrap(trials, labels, resamples=500)["m"])
        held += low <= truth <= high
    assert 0.93 <= held / runs <= 0.97, held


def test_intervals_hold_the_truth_93_to_97_times_in_100() -> None:
    """Two models of known quality meet 2,000 times; the truth is that of very many texts."""
    rng = np.random.default_rng(5)
    n, runs = 500, 2_000
    # of each label: both right, only the first, only the second, none; two labels
    shares = {"a": (0.66, 0.14, 0.10, 0.10), "b": (0.72, 0.10, 0.06, 0.12)}
    kinds = ((True, True), (True, False), (False, True), (False, False))

    def wrong(label: str) -> str:
        return "b" if label == "a" else "a"

    def texts(counts: dict[str, np.ndarray]) -> dict[str, Answers]:
        first: list[tuple[str, str | None]] = []
        second: list[tuple[str, str | None]] = []
        for label, numbers in counts.items():
            for (one, other), number in zip(kinds, numbers, strict=True):
                first += [(label, label if one else wrong(label))] * int(number)
                second += [(label, label if other else wrong(label))] * int(number)
        return {
            "first": [(str(i), *answer) for i, answer in enumerate(first)],
            "second": [(str(i), *answer) for i, answer in enumerate(second)],
        }

    many = texts({label: np.array(share) * 1_000 for label, share in shares.items()})
    truth = {name: macro_f1(answers) for name, answers in many.items()}
    truth["difference"] = truth["first"] - truth["second"]
    held = dict.fromkeys(truth, 0)
    for _ in range(runs):
        counts = {label: rng.multinomial(n // 2, share) for label, share in shares.items()}
        draws = bootstrap([texts(counts)], LABELS, resamples=1_000)
        draws["difference"] = draws["first"] - draws["second"]
        for name, value in truth.items():
            low, high = interval(draws[name])
            held[name] += low <= value <= high
    assert all(0.93 <= times / runs <= 0.97 for times in held.values()), held


# --------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        # by hand: 2 * sum of binomial(n, k) / 2^n over the smaller side
        (0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (1, 9, 2 * 11 / 1024),
        # Agresti, Categorical Data Analysis: approval of the prime minister, 86 against 150
        (86, 150, float(stats.binomtest(86, 236).pvalue)), (10, 10, 1.0),
    ],
)  # fmt: skip
def test_mcnemar(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p_value)
    assert mcnemar(only_second, only_first) == pytest.approx(p_value)


def test_mcnemar_of_a_published_example() -> None:
    """Agresti (Categorical Data Analysis, 1990) has z^2 = 17.36 for 86 and 150."""
    assert pytest.approx(17.36, abs=0.005) == (86 - 150) ** 2 / (86 + 150)
    assert mcnemar(86, 150) == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.35)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []), ([0.04], [0.04]), ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]), ([0.6, 0.7], [1.0, 1.0]),
    ],
)  # fmt: skip
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_needed_texts() -> None:
    # (1.959964 + 0.841621)^2 = 7.849: the textbook factor
    assert needed(0.02, 0.02, 500) == 4_000
    assert needed(0.01, 0.02, 500) == 16_000
    assert needed(0.2, 0.02, 500) == 40
    assert needed(0.0, 0.02, 500) is None
    assert needed(1e-8, 0.02, 500) is None


def test_needed_texts_are_enough_four_times_in_five() -> None:
    rng = np.random.default_rng(6)
    one, other, n = 0.85, 0.80, 500
    error = float(np.sqrt((one * (1 - one) + other * (1 - other)) / n))
    enough = needed(one - other, error, n)
    assert enough is not None
    seen = 0
    for _ in range(2_000):
        hits = rng.binomial(enough, [one, other]) / enough
        spread = np.sqrt((hits * (1 - hits)).sum() / enough)
        seen += abs(hits[0] - hits[1]) > 1.96 * spread
    assert 0.77 <= seen / 2_000 <= 0.84


# ---------------------------------------------------------------------------------- comparisons


def compared(first: float, second: float, n: int = 500) -> Comparison:
    rng = random.Random(7)
    trials = {
        k: {
            "x": other_texts(answered(rng, n, first), k),
            "y": other_texts(answered(rng, n, second), k),
        }
        for k in (1, 2)
    }
    scores = {m: {k: macro_f1(trials[k][m]) for k in trials} for m in "xy"}
    (one,) = compare(trials, scores, LABELS)
    return one


def test_a_large_difference_is_real_and_said_so() -> None:
    one = compared(0.9, 0.7)
    assert one.is_real
    assert one.sentence.startswith("x is better than y on these texts: +")
    other = compared(0.7, 0.9)
    assert other.is_real
    assert other.difference < 0
    assert other.sentence.startswith("y is better than x on these texts: +")


def test_a_small_difference_is_not() -> None:
    one = compared(0.81, 0.80)
    assert not one.is_real
    assert one.sentence.startswith("x and y cannot be told apart on these data: ")
    assert one.sentence.endswith(" test texts would be needed")


def test_a_model_against_itself() -> None:
    answers = answered(random.Random(8), 100, 0.8)
    score = macro_f1(answers)
    (one,) = compare({1: {"x": answers, "y": answers}}, {"x": {1: score}, "y": {1: score}}, LABELS)
    assert (one.difference, one.interval, one.p_value, one.needed) == (0, (0, 0), 1, None)
    assert one.sentence == (
        "x and y cannot be told apart on these data: +0.0 points, 95 % +0.0 to +0.0"
    )


def test_only_trials_that_both_have_are_compared() -> None:
    rng = random.Random(9)
    trials = {1: {"x": answered(rng, 50, 0.8)}, 2: {m: answered(rng, 50, 0.8) for m in "xy"}}
    scores = {"x": {1: 0.8, 2: 0.7}, "y": {2: 0.9}, "z": {}}
    (one,) = compare(trials, scores, LABELS)
    assert (one.first, one.second, one.n) == ("x", "y", 50)
    assert one.difference == pytest.approx(-0.2)


def test_luck_is_rarely_taken_for_real() -> None:
    """Models of the same quality: 5 in 100 pairs at most may be called different."""
    rng = random.Random(10)
    real = 0
    for _ in range(200):
        trials = {1: {m: answered(rng, 200, 0.8) for m in "xy"}}
        scores = {m: {1: macro_f1(trials[1][m])} for m in "xy"}
        real += compare(trials, scores, LABELS)[0].is_real
    assert real <= 10
