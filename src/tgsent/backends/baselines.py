"""What a generative model has to beat: the commonest label, and TF-IDF with logistic regression."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline, make_union

from tgsent.config import TrialSpec
from tgsent.errors import TrialError
from tgsent.records import Example, Outcome, Prediction, Progress, Split

STRENGTHS = (0.3, 1.0, 3.0, 10.0)
"""Inverse strengths of regularisation that cross-validation chooses from."""
_FOLDS = 3


def run(spec: TrialSpec, split: Split, progress: Progress, peak_memory_bytes: int) -> Outcome:
    """Fit the reference row that `spec` names on the training split; answer the test texts."""
    texts = [example.text for example in split.tested]
    started = time.perf_counter()
    with progress.task(f"{spec.title}, fitting", len(split.train)) as task:
        model = Majority() if spec.model == "majority" else TfIdf(spec.seed)
        model.fit(split.train, spec.labels)
        task.advance(len(split.train))
    fitted = time.perf_counter()
    probabilities = model.probabilities(texts)
    predictions = tuple(
        Prediction(
            text=example.text,
            label=example.label,
            predicted=(said := spec.labels[int(np.argmax(row))]),
            generated=said,
            probabilities=tuple(map(float, row)),
        )
        for example, row in zip(split.tested, probabilities, strict=True)
    )
    return Outcome(
        predictions=predictions,
        log=(),
        steps=0,
        learning_rate=0.0,
        train_seconds=fitted - started,
        eval_seconds=time.perf_counter() - fitted,
        truncated=0,
        truncated_tokens=0,
        peak_memory_bytes=peak_memory_bytes,
        parameters=model.parameters,
        trainable_parameters=model.parameters,
        device="cpu",
        precision="fp64",
    )


class Majority:
    """Gives every text the label that is commonest in training; the first of equals."""

    def fit(self, train: Sequence[Example], labels: Sequence[str]) -> None:
        """Count the labels."""
        counts = Counter(example.label for example in train)
        self._shares = np.array([counts[label] / len(train) for label in labels])
        self.parameters = len(labels)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Give the labels' shares in training, for every text: (texts, labels)."""
        return np.tile(self._shares, (len(texts), 1))


class TfIdf:
    """Logistic regression on TF-IDF weights of words, pairs of words, and 2 to 5 characters.

    How strongly it is regularised is chosen by cross-validation within the training split.
    """

    def __init__(self, seed: int) -> None:
        self._model = make_pipeline(
            make_union(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                TfidfVectorizer(analyzer="char", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
            ),
            GridSearchCV(
                LogisticRegression(max_iter=1000),
                {"C": list(STRENGTHS)},
                cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
                scoring="f1_macro",
            ),
        )

    def fit(self, train: Sequence[Example], labels: Sequence[str]) -> None:
        """Weigh, choose and fit; raises TrialError where a label has too few texts for that."""
        rarest, count = min(
            Counter(example.label for example in train).items(), key=lambda item: item[1]
        )
        if count < _FOLDS:
            raise TrialError(
                f'tfidf: the label "{rarest}" has {count} training texts, and cross-validation'
                f" needs {_FOLDS}"
            )
        self._model.fit([example.text for example in train], [example.label for example in train])
        search = self._model[-1]
        self._columns = [list(search.classes_).index(label) for label in labels]
        self.parameters = int(search.best_estimator_.coef_.size)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Give the likelihood of every label for every text: (texts, labels)."""
        found: np.ndarray = self._model.predict_proba(texts)[:, self._columns]
        return found
