"""Baselines that a generative model has to beat."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline, make_union

from tgsent.backends import Backend, TrialFolders
from tgsent.config import TrialSpec
from tgsent.errors import TrialError
from tgsent.records import Outcome, Prediction, Progress, Split
from tgsent.training import memory

STRENGTHS = (0.3, 1.0, 3.0, 10.0)
"""Inverse regularisation strengths that cross-validation chooses from."""
_FOLDS = 3

Fitted = tuple[BaseEstimator, int]
"""A fitted classifier, and the number of its parameters."""


class Baseline(Backend):
    """A classifier of scikit-learn that is fitted on the training texts."""

    is_constant = False
    """Whether it gives every text the same label by design."""

    @abstractmethod
    def fit(self, texts: Sequence[str], labels: Sequence[str], seed: int) -> Fitted:
        """Fit on texts and their labels."""

    def settings(self, spec: TrialSpec) -> None:  # noqa: ARG002  of the protocol
        """Return None: no training setting applies."""
        return

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
            texts = [example.text for example in split.train]
            model, parameters = self.fit(texts, [one.label for one in split.train], spec.seed)
            task.advance(len(split.train))
        fitted = time.perf_counter()
        # a label that has no training text has probability 0
        probabilities = np.zeros((len(split.tested), len(spec.labels)))
        columns = [spec.labels.index(label) for label in model.classes_]
        probabilities[:, columns] = model.predict_proba([example.text for example in split.tested])
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
            parameters=parameters,
            trainable_parameters=parameters,
            device="cpu",
            precision="fp64",
            is_constant=self.is_constant,
        )


class Majority(Baseline):
    """The label that is commonest in training, for every text; the first of equals."""

    is_constant = True

    def fit(self, texts: Sequence[str], labels: Sequence[str], seed: int) -> Fitted:  # noqa: ARG002
        """Count the labels."""
        model = DummyClassifier(strategy="prior").fit(texts, labels)
        return model, len(model.classes_)


class TfIdf(Baseline):
    """Logistic regression on TF-IDF weights of words, pairs of words, and 2 to 5 characters.

    Cross-validation within the training texts chooses the strength of its regularisation.
    """

    def fit(self, texts: Sequence[str], labels: Sequence[str], seed: int) -> Fitted:
        """Choose the regularisation and fit; raise TrialError where a label has too few texts."""
        rarest, count = Counter(labels).most_common()[-1]
        if count < _FOLDS:
            raise TrialError(
                f'tfidf: the label "{rarest}" has {count} training texts, and cross-validation'
                f" needs {_FOLDS}"
            )
        search = GridSearchCV(
            LogisticRegression(max_iter=1000),
            {"C": list(STRENGTHS)},
            cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
            scoring="f1_macro",
        )
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        characters = TfidfVectorizer(
            analyzer="char", ngram_range=(2, 5), min_df=2, sublinear_tf=True
        )
        model = make_pipeline(make_union(words, characters), search).fit(texts, labels)
        return model, int(search.best_estimator_.coef_.size)
