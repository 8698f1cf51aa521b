"""The first command of every user, as it is: models from a hub, tweets from a server."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import ROOT, Cli
from fake_hub import COMMIT, Repository, hub_environment, serve
from tgsent.data.sentiment140 import FILE
from tgsent.modeling import loading
from tiny_models import examples, tiny_spec

COMMAND = ("run", "--model", "gpt2", "--trials", "3")
GPT2 = "openai-community/gpt2"


def archive() -> bytes:
    """12,000 made-up tweets in the original's layout, packed as the original is."""
    rows = []
    for i in range(12_000):
        good = i >= 6_000
        word = ("lovely", "great", "sweet")[i % 3] if good else ("awful", "sad", "broken")[i % 3]
        rows.append(f'"{4 * good}","{i}","","NO_QUERY","","tweet {i} is {word} "\n')
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(FILE, "".join(rows).encode("iso-8859-1"))
    return file.getvalue()


def smallest_gpt2(folder: Path) -> dict[str, bytes]:
    """The files of a GPT-2 so small that 10,000 texts take seconds."""
    tokenizer = loading.load(tiny_spec("gpt2"), examples(200)).tokenizer
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=1, n_positions=512, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def serve_archive(content: bytes) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/trainingandtestdata.zip", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        (("--set", "data.sample_size=1000"), (950, 50)),
        pytest.param((), (9500, 500), marks=pytest.mark.slow),
    ],
)
def test_the_first_command_downloads_and_runs(
    more: tuple[str, ...], sizes: tuple[int, int], cli: Cli, tmp_path: Path
) -> None:
    content = archive()
    repository = Repository(smallest_gpt2(tmp_path / "made"))
    with serve({GPT2: repository}) as hub, serve_archive(content) as (url, asked):
        environment = hub_environment(hub.endpoint, tmp_path / "hub") | {
            "TGSENT_CACHE": str(tmp_path / "cache"),
            "TGSENT_SENTIMENT140_URL": url,
            "TGSENT_SENTIMENT140_MD5": hashlib.md5(content).hexdigest(),
        }
        done = cli(*COMMAND, *more, env=environment)
    assert done.returncode == 0, done.stderr
    assert asked == ["/trainingandtestdata.zip"]
    for part in (f"Sentiment140: fetching {url}", f"downloading {GPT2} from {hub.endpoint}"):
        assert part in done.stderr
    assert "trial 3" in done.stdout
    results = json.loads((tmp_path / "runs/default/results.json").read_bytes())
    (row,) = results["models"]
    assert [(t["n_train"], t["n_test"], t["commit"]) for t in row["trials"]] == [
        (*sizes, COMMIT)
    ] * 3
    assert results["article"]["mean_macro_f1"] == {"gpt2": 0.817}

    again = cli(*COMMAND, *more, "--json", env=environment)  # both servers are gone
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["models"] == results["models"]


def test_all_that_is_missing_is_told_at_once(cli: Cli, tmp_path: Path) -> None:
    nowhere = hub_environment("http://127.0.0.1:9", tmp_path / "hub")
    done = cli(*COMMAND, "--quiet", env=nowhere | {"TGSENT_CACHE": str(tmp_path / "cache")})
    assert (done.returncode, done.stdout) == (3, "")
    assert f"the model gpt2 ({GPT2}) is not available" in done.stderr
    assert "Sentiment140 cannot be fetched" in done.stderr
    assert list(tmp_path.glob("runs/*")) == []


def test_the_command_is_the_one_that_the_readme_shows() -> None:
    assert f"tgsent {' '.join(COMMAND)}" in (ROOT / "README.md").read_text("utf-8")
