from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

import run_folders
from conftest import Cli
from tgsent.errors import RunFolderError
from tgsent.experiment import predict
from tgsent.records import Prediction
from tgsent.runs import stored
from tiny_models import Silent

KEEP = ("output.save_model=first", "training.max_tokens=64")


@pytest.fixture(scope="module", params=["free", "score", "constrained"])
def decoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, decoding: str) -> Path:
    return run_folders.make(
        tmp_path_factory.mktemp("run"),
        models=("gpt2", "gpt-neo", "t5", "majority"),
        overrides=[*KEEP, f"evaluation.decoding={decoding}", "prompt.shots=1"],
    )


def of_the_run(folder: Path, model: str) -> list[Prediction]:
    return list(stored.read(folder).predictions[model, 1])


@pytest.mark.parametrize("model", ["gpt2", "gpt-neo", "t5"])
def test_the_texts_of_the_run_get_the_answers_of_the_run(folder: Path, model: str) -> None:
    expected = of_the_run(folder, model)
    random.Random(1).shuffle(expected)
    classifier = predict.load(stored.read(folder), model, None)
    answers = list(classifier.classify((p.text for p in expected), Silent()))
    assert [(p.text, p.predicted, p.generated) for p in answers] == [
        (p.text, p.predicted, p.generated) for p in expected
    ]
    for answer, before in zip(answers, expected, strict=True):
        assert answer.probabilities is not None
        assert sum(answer.probabilities) == pytest.approx(1)
        if before.probabilities:  # which the run's file has to six digits
            assert answer.probabilities == pytest.approx(before.probabilities, abs=2e-6)


@pytest.mark.parametrize("calibration", ["auto", "none"])
def test_a_model_that_was_not_trained_answers_as_calibrated_as_in_the_run(
    calibration: str, tmp_path: Path
) -> None:
    zero_shot = ("training.epochs=0", "evaluation.decoding=score")
    folder = run_folders.make(
        tmp_path,
        models=("gpt2", "majority"),
        overrides=[*KEEP, *zero_shot, f"evaluation.calibration={calibration}"],
        trials=1,
    )
    run = stored.read(folder)
    prior = run.trials["gpt2"][1].label_prior
    assert run.trials["majority"][1].label_prior is None
    assert (prior is None) == (calibration == "none")
    assert prior is None or sum(prior.values()) == pytest.approx(1)
    assert ("score, contextual" in run.trials["gpt2"][1].signature) == (calibration == "auto")
    expected = of_the_run(folder, "gpt2")
    answers = predict.load(run, "gpt2", 1).classify((p.text for p in expected), Silent())
    for answer, before in zip(answers, expected, strict=True):
        assert answer.predicted == before.predicted
        assert answer.probabilities == pytest.approx(before.probabilities, abs=2e-6)
    shown = (folder / "report.md").read_text("utf-8")
    assert ("score, calibrated by" in shown) == (calibration == "auto")


def test_windows_do_not_show(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [p.text for p in of_the_run(folder, "gpt2")]
    run = stored.read(folder)
    whole = list(predict.load(run, "gpt2", 1).classify(texts, Silent()))
    monkeypatch.setattr(predict, "_BATCHES_AT_ONCE", 1)
    classifier = predict.load(run, "gpt2", 1)
    small = classifier.spec.evaluation.model_copy(update={"batch_size": 7})
    classifier.spec = classifier.spec.model_copy(update={"evaluation": small})
    taken = 0

    def counted() -> Iterator[str]:
        nonlocal taken
        for text in texts:
            taken += 1
            yield text

    answers = classifier.classify(counted(), Silent())
    first = next(answers)
    assert taken == 7  # and no more texts than that are held
    rest = [first, *answers]
    assert [(p.text, p.generated) for p in rest] == [(p.text, p.generated) for p in whole]


def test_a_text_is_counted_as_cut_once(folder: Path) -> None:
    classifier = predict.load(stored.read(folder), "gpt2", 1)
    list(classifier.classify(["long " * 200, "short"], Silent()))
    assert classifier.encoder.truncated == 1


def test_the_best_model_answers_unless_told_otherwise(folder: Path) -> None:
    run = stored.read(folder)
    kept = {name: own for name, own in run.trials.items() if name != "majority"}
    best = max(kept, key=lambda name: fmean(m.macro_f1 for m in kept[name].values()))
    assert predict.load(run, None, None).spec.name == best


@pytest.mark.parametrize(
    ("model", "trial", "told"),
    [
        ("bert", None, '--model: .* has no model "bert", but gpt2, gpt-neo, t5, majority'),
        ("majority", None, "majority: baselines are never kept"),
        ("gpt2", 2, r"no weights of gpt2 trial 2 were kept .*\n.*output.save_model=all\n"),
        (None, 9, "--trial: .* has no trial 9, but 1, 2"),
    ],
)
def test_what_was_not_kept_is_told(
    folder: Path, model: str | None, trial: int | None, told: str
) -> None:
    with pytest.raises(RunFolderError, match=told):
        predict.load(stored.read(folder), model, trial)


def test_a_run_without_weights_says_how_to_get_them(tmp_path: Path) -> None:
    folder = run_folders.make(tmp_path, models=("gpt2",), trials=1)
    with pytest.raises(RunFolderError, match=r"\ntgsent --set output.save_model=first\n"):
        predict.load(stored.read(folder), None, None)


# ------------------------------------------------------------------------------ the command line


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.make(
        tmp_path_factory.mktemp("kept"), models=("gpt2",), overrides=KEEP, trials=1
    )


def test_texts_as_arguments(kept: Path, cli: Cli) -> None:
    texts = [p.text for p in of_the_run(kept, "gpt2") if "\x1b" not in p.text][:3]
    done = cli("predict", str(kept), *texts)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["text"] for row in rows] == texts
    assert list(rows[0]) == [
        "line", "text", "predicted", "generated", "p_bad | `x`", "p_good <b>"
    ]  # fmt: skip
    assert done.stderr.splitlines() == [f"gpt2 trial 1, kept in {kept}", "3 texts classified"]


def without_lines(answers: str) -> list[list[str]]:
    return [row[1:] for row in csv.reader(io.StringIO(answers))]


def test_a_file_in_each_format_gives_the_same(kept: Path, cli: Cli, tmp_path: Path) -> None:
    texts = ["a fine day", "a poor day", "=1+1"]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "t.csv").write_text("n,body\n" + "".join(f"{i},{t}\n" for i, t in enumerate(texts)))
    expected = cli("predict", str(kept), *texts, "-q").stdout
    assert "\n3,'=1+1," in expected  # no formula
    for args in (("t.txt",), ("t.jsonl",), ("t.csv", "--column", "body")):
        done = cli("predict", str(kept), "-q", "--file", *args)
        answers = without_lines(done.stdout)
        assert (answers, done.stderr, done.returncode) == (without_lines(expected), "", 0)
    lines = cli("predict", str(kept), "-q", "--json", "--file", "t.txt").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["text"] for answer in answers] == texts
    assert set(answers[0]) == {"line", "text", "predicted", "generated", "probabilities"}
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)


def test_a_broken_line_is_told_and_does_not_stop_the_rest(
    kept: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_bytes(b"one\n\xff\nthree\n" + b"\n" * 30)
    done = cli("predict", str(kept), "--file", "t.txt", "--json", "-q")
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["line"], answer["text"]) for answer in answers] == [(1, "one"), (3, "three")]
    first, *_, last = done.stderr.splitlines()
    assert first == "tgsent: t.txt, line 2: is not UTF-8"
    assert last == "tgsent: lines that could not be read, and have no answer: 31"
    assert len(done.stderr.splitlines()) == 21


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected either texts or --file"),
        (("a", "--file", "-"), "expected either texts or --file"),
        (
            ("--file", "nowhere.txt"),
            "Invalid value for '--file': 'nowhere.txt': No such file or directory",
        ),
        (("--file", "t.csv"), 't.csv: has no column "text"; --column names one of body'),
        (("a", "--model", "t6"), 'has no model "t6", but gpt2'),
        (("a", "--trial", "x"), "Invalid value for '--trial'"),
    ],
)
def test_what_is_wrong_is_told(
    args: tuple[str, ...], message: str, kept: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("body\na\n")
    done = cli("predict", str(kept), *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 3
