"""Baselines that a generative model has to beat."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline, make_union

from tgsent.backends import TrialFolders
from tgsent.config import TrialSpec
from tgsent.errors import TrialError
from tgsent.records import Example, Outcome, Prediction, Progress, Split
from tgsent.training import memory

STRENGTHS = (0.3, 1.0, 3.0, 10.0)
"""Inverse regularisation strengths that cross-validation chooses from."""
_FOLDS = 3


class Baseline(ABC):
    """A classifier that is fitted on the training texts."""

    in_our_loop = False
    is_constant = False
    """Whether it gives every text the same label by design."""
    parameters: int

    @abstractmethod
    def fit(self, train: Sequence[Example], labels: Sequence[str], seed: int) -> None:
        """Fit, and set `parameters`."""

    @abstractmethod
    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of every label for every text: (texts, labels)."""

    def settings(self, spec: TrialSpec) -> None:  # noqa: ARG002  of the protocol
        """Return None: no training setting applies."""
        return

    def check_installed(self, spec: TrialSpec) -> None:  # noqa: B027  nothing to override
        """Accept every trial: nothing is needed."""

    def check(self, spec: TrialSpec, **_: object) -> tuple[str, ...]:  # noqa: ARG002
        """Accept every trial."""
        return ()

    def run(
        self,
        spec: TrialSpec,
        split: Split,
        progress: Progress,
        folders: TrialFolders,  # noqa: ARG002  there is nothing to keep
    ) -> Outcome:
        """Fit on the training texts and classify the test texts."""
        started = time.perf_counter()
        with progress.task(f"{spec.title}, fitting", len(split.train)) as task:
            self.fit(split.train, spec.labels, spec.seed)
            task.advance(len(split.train))
        fitted = time.perf_counter()
        probabilities = self.probabilities([example.text for example in split.tested])
        predictions = tuple(
            Prediction(
                text=example.text,
                label=example.label,
                predicted=(label := spec.labels[int(np.argmax(row))]),
                generated=label,
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
            peak_memory_bytes=memory.peak(),
            parameters=self.parameters,
            trainable_parameters=self.parameters,
            device="cpu",
            precision="fp64",
            is_constant=self.is_constant,
        )


class Majority(Baseline):
    """The label that is commonest in training, for every text; the first of equals."""

    is_constant = True

    def fit(self, train: Sequence[Example], labels: Sequence[str], seed: int) -> None:  # noqa: ARG002
        """Count the labels."""
        counts = Counter(example.label for example in train)
        self._shares = np.array([counts[label] / len(train) for label in labels])
        self.parameters = len(labels)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return the labels' shares in training, for every text: (texts, labels)."""
        return np.tile(self._shares, (len(texts), 1))


class TfIdf(Baseline):
    """Logistic regression on TF-IDF weights of words, pairs of words, and 2 to 5 characters.

    Cross-validation within the training texts chooses the strength of its regularisation.
    """

    def fit(self, train: Sequence[Example], labels: Sequence[str], seed: int) -> None:
        """Choose the regularisation and fit; raise TrialError where a label has too few texts."""
        rarest, count = min(
            Counter(example.label for example in train).items(), key=lambda item: item[1]
        )
        if count < _FOLDS:
            raise TrialError(
                f'tfidf: the label "{rarest}" has {count} training texts, and cross-validation'
                f" needs {_FOLDS}"
            )
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
        self._model.fit([example.text for example in train], [example.label for example in train])
        search = self._model[-1]
        self._columns = [list(search.classes_).index(label) for label in labels]
        self.parameters = int(search.best_estimator_.coef_.size)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of every label for every text: (texts, labels)."""
        found: np.ndarray = self._model.predict_proba(texts)[:, self._columns]
        return found
