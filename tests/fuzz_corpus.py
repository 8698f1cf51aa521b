"""Bad and odd configs and data files, made from a seed: what the door must let nothing past of."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from conftest import ROOT

VALID: dict[str, Any] = {
    "name": "mine", "models": ["gpt2", {"model": "t5", "as": "T5", "training": {"epochs": 2}}],
    "trials": 2, "seed": 1,
    "data": {"path": "sample", "text_column": None, "label_column": None, "encoding": None,
             "labels": {"negative": "bad", "positive": "good"}, "deduplicate": True,
             "sample_size": 200, "sample_seed": 1, "test_fraction": 0.2},
    "prompt": {"input": "Tweet: {text}\nSentiment:", "target": " {label}", "start_token": None},
    "training": {"init": "tiny", "epochs": 1, "batch_size": 8, "learning_rate": 1e-3,
                 "warmup_steps": 0.1, "weight_decay": 0.01, "loss": "label", "max_tokens": 64,
                 "lora": {"r": 4, "alpha": 8, "dropout": 0.1}, "precision": "auto"},
    "evaluation": {"decoding": "score", "batch_size": 64},
    "output": {"dir": "runs", "save_model": "none", "checkpoint_minutes": 5},
}  # fmt: skip

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**9, 10**30, -(10**30), 0.0, -0.5, 0.5, 1e-300, 1e300,
    float("nan"), float("inf"), float("-inf"), "", " ", "\n", "\t", "null", "~", "yes", "0x10",
    "1e5", "1_000", "١٢", "a" * 100_000, "é\u0301", "\x00", "\x1b[31mred", "\u202eevil", "\x85",
    "../../../etc/passwd", "/dev/zero", "/dev/full", "con:", "{text}", "{label}", "{text}{text}",
    "{}", "{0}", "%s", "$(touch x)", "`touch x`", "; touch x", "=1+1", "@x@y", "gpt2@", "@",
    [], [[]], [None], ["a"], [1, "a", {}], {}, {"a": 1}, {"text": {"text": {}}}, {1: 2},
    list(range(2000)), {str(i): i for i in range(2000)}, "2024-01-01", "12:30:45", "<<", "*", "&a",
    "!!python/name:os.system", "sentiment140", "sample", "utf-16", "idna", "zlib", "rot13", "hex",
)  # fmt: skip
_SYNTAX = (
    "[", "]", "{", "}", ":", "- ", ", ", "# ", "&a ", "*a", "<<: ", "!!int ", "!!float ", "!!str ",
    "!!null ", "!!set ", "!!binary ", "!!timestamp ", "!!omap ", "!x ", "|\n  ", ">-\n  ", "'", '"',
    "\\", "\n", "\n  ", "---\n", "...\n", "%YAML 1.2\n", "%TAG ! x\n", "? ", "\t", "\ufeff", "\x00",
    "\x07", "\x85", "\u2028", "\U0001f600", "trials", "data", "models", "training", "epochs", "1",
    "-1", "1e9", ".nan", ".inf", "0o7", "0x1f", "true", "null", "~", "gpt2", "sample",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One input: a file's name and content, and what is said beside it on the command line."""

    kind: str
    name: str
    content: bytes
    sets: tuple[str, ...] = ()


def configs(seed: int, count: int) -> Iterator[Case]:
    """Make `count` configs, every kind in turn."""
    rng = random.Random(seed)
    makers = (
        _mutated_values, _mutated_values, _mutated_text, _mutated_bytes, _random_yaml, _bomb,
        _encoded, _overridden, _twice, _binary,
    )  # fmt: skip
    for number in range(count):
        make = makers[number % len(makers)]
        made = make(rng)
        content, sets = made if isinstance(made, tuple) else (made, ())
        yield Case(make.__name__.strip("_"), "config.yaml", content, sets)


def data_files(seed: int, count: int) -> Iterator[Case]:
    """Make `count` data files, every kind in turn."""
    rng = random.Random(seed)
    makers = (
        _cut, _ragged, _stray, _characters, _mixed, _labels, _columns, _sizes, _jsonl, _parquet,
        _sentiment140, _binary_data,
    )  # fmt: skip
    for number in range(count):
        make = makers[number % len(makers)]
        name, content = make(rng)
        yield Case(make.__name__.strip("_"), name, content, _data_settings(rng))


# ------------------------------------------------------------------------------------- configs


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "replace")


def _copy() -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(VALID))
    return copied


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _mutated_values(rng: random.Random) -> bytes:
    config = _copy()
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        path = rng.choice(list(_places(config)))
        holder: Any = config
        for key in path[:-1]:
            holder = holder[key]
        what = rng.random()
        if what < 0.7:
            holder[path[-1]] = copy.deepcopy(rng.choice(NASTY))
        elif what < 0.8:
            del holder[path[-1]]
        elif isinstance(holder, dict):
            key = str(path[-1])
            at = rng.randrange(len(key))
            holder[key[:at] + rng.choice("aeiou_-X ") + key[at + 1 :]] = holder.pop(path[-1])
    return _yaml(config)


def _mutated_text(rng: random.Random) -> bytes:
    lines = _yaml(VALID).decode().splitlines()
    if rng.random() < 0.3:
        lines = (ROOT / f"configs/{rng.choice(('smoke', 'article'))}.yaml").read_text().splitlines()
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        line = lines[at]
        lines[at : at + 1] = rng.choice((
            [], [line, line], ["  " + line], ["\t" + line], [line.strip()], [line.replace(":", "")],
            [line + " " + rng.choice(_SYNTAX)], [line, rng.choice(_SYNTAX) * 3],
            [line[: rng.randrange(len(line) + 1)]],
        ))  # fmt: skip
        if not lines:
            break
    return "\n".join(lines).encode("utf-8", "replace")


def _mutated_bytes(rng: random.Random) -> bytes:
    content = bytearray(_yaml(VALID))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content))
        content[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    return bytes(content)


def _random_yaml(rng: random.Random) -> bytes:
    return "".join(rng.choices(_SYNTAX, k=rng.randint(1, 60))).encode("utf-8", "replace")


def _bomb(rng: random.Random) -> bytes:
    """Few bytes that want to become many things."""
    key = rng.choice(("data", "models", "labels", "training", "name", "x"))
    depth, width = rng.randint(2, 40), rng.randint(2, 12)
    laughs = ["a0: &a0 [lol, lol]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    merged = ["a0: &a0 {epochs: 1}"]
    merged += [
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}]}}" for i in range(1, depth)
    ]
    return rng.choice((
        "\n".join([*laughs, f"{key}: *a{depth - 1}"]),
        "\n".join([*merged, f"{key}: *a{depth - 1}"]),
        f"{key}: &a [*a]", f"{key}: &a {{b: *a}}", f"&a {key}: *a", f"{key}: &a {{<<: *a}}",
        "models:\n- &a {model: gpt2, training: *a}",
        f"{key}: " + "[" * rng.choice((50, 1000, 20_000)),
        f"{key}: " + "{a: " * rng.choice((50, 1000, 5_000)),
        f"{key}: " + "- " * rng.choice((50, 1000, 5_000)),
        "\n".join(f"{'  ' * i}a:" for i in range(rng.choice((50, 1000)))),
        f"{key}: " + "9" * rng.choice((100, 5_000, 100_000)),
        f"{key}: 1e" + "9" * rng.choice((5, 5_000)),
        f"{key}: !!python/object/apply:os.system ['touch hacked']",
        f"{key}: !!python/tuple [1, 2]", f"{key}: !!binary {'A' * 10_001}",
        f"{key}: !!timestamp 2024-99-99", f"{key}: !!int abc", f"{key}: !!bool 2",
        f"{key}: !!set {{a, b}}", f"{key}: !!omap [a: 1]", f"{key}: !!pairs [a: 1]",
        f"? [a, b]\n: {key}", f"? {{a: b}}\n: {key}", f"{key}: 'never ends", f'{key}: "\\ud800"',
        f'{key}: "\\x00"', "a: 1\n---\nb: 2", f"{key}: " + "a, " * 20_000,
    )).encode()  # fmt: skip


def _encoded(rng: random.Random) -> bytes:
    text = "name: schön\n" + _yaml(_copy()).decode()
    encoding = rng.choice(
        ("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp037", "utf-7", "shift_jis")
    )
    content = text.encode(encoding, "replace")
    return content if rng.random() < 0.7 else content[: rng.randrange(len(content))]


def _overridden(rng: random.Random) -> tuple[bytes, tuple[str, ...]]:
    paths = [".".join(map(str, path)) for path in _places(VALID)]
    more = ("", ".", "..", "models.9.model", "models.x", "models.0.training.epochs", "data.", "x.y")
    sets = []
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(NASTY)
        text = value if isinstance(value, str) else json.dumps(value)
        sign = rng.choice(("=", "=", "=", "", "==", ":"))
        sets.append(rng.choice((*paths, *more)) + sign + text.replace("\x00", "\\0"))
    return _yaml(VALID), tuple(sets)


def _twice(rng: random.Random) -> bytes:
    path = rng.choice([path for path in _places(VALID) if len(path) == 1])
    return _yaml(VALID) + _yaml({path[0]: rng.choice(NASTY)})


def _binary(rng: random.Random) -> bytes:
    start = rng.choice(
        (b"", b"\x89PNG\r\n", b"\x1f\x8b\x08", b"PK\x03\x04", b"\x80\x04\x95", b"%PDF")
    )
    return start + rng.randbytes(rng.choice((0, 1, 10, 1000, 50_000)))


# ---------------------------------------------------------------------------------------- data


def _rows(rng: random.Random, count: int = 40) -> list[tuple[str, str]]:
    words = {"negative": "awful sad rain", "positive": "lovely sun cake"}
    return [
        (f"{rng.choice(words[label].split())} day number {i}", label)
        for i, label in enumerate(list(words) * (count // 2))
    ]


def _csv(rows: list[tuple[str, ...]], end: str = "\n", header: str = "text,label") -> str:
    quoted = (",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    return end.join([header, *quoted]) + end


def _data_settings(rng: random.Random) -> tuple[str, ...]:
    if rng.random() < 0.7:
        return ("data.sample_size=null", "data.test_fraction=0.2")
    chosen = rng.choice((
        "data.encoding=utf-16", "data.encoding=ascii", "data.encoding=iso-8859-1",
        "data.encoding=zlib", "data.encoding=idna", "data.text_column=nothing",
        "data.text_column=0", "data.label_column=label", "data.label_column=text",
        "data.labels={negative: bad, positive: good}", "data.labels={a: b, c: d}",
        "data.deduplicate=false", "data.sample_size=10", "data.test_fraction=0.999",
    ))  # fmt: skip
    if chosen == "data.text_column=0":
        return ("data.sample_size=null", "data.test_fraction=0.2", chosen, "data.label_column=1")
    return ("data.sample_size=null", "data.test_fraction=0.2", chosen)


def _cut(rng: random.Random) -> tuple[str, bytes]:
    """Cut anywhere, within a character or a quoted field as well."""
    content = _csv(_rows(rng)).replace("lovely", "schön 😀").encode()
    return "data.csv", content[: rng.randrange(len(content))]


def _ragged(rng: random.Random) -> tuple[str, bytes]:
    lines = _csv(_rows(rng)).split("\n")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        lines[at] = rng.choice((lines[at] + ",more", lines[at].split(",")[0], "", ",", ",,,,", " "))
    return rng.choice(("data.csv", "data.tsv")), "\n".join(lines).encode()


def _stray(rng: random.Random) -> tuple[str, bytes]:
    content = _csv(_rows(rng))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content))
        content = content[:at] + rng.choice(('"', "'", '""', '"\n', "\\", ",", "\t")) + content[at:]
    return rng.choice(("data.csv", "data.tsv")), content.encode()


def _characters(rng: random.Random) -> tuple[str, bytes]:
    """Put odd characters in, byte-order marks and line ends of all kinds among them."""
    odd = ("\x00", "\x1a", "\x1b]0;title\x07", "\ufeff", "\u202e", "\x85", "\u2028", "\r", "\x0c",
           "<|endoftext|>", "</s>", "{text}", "=cmd|' /C calc'!A0", "\U0010ffff")  # fmt: skip
    rows = [(text + rng.choice(odd) * rng.randint(0, 2), label) for text, label in _rows(rng)]
    content = _csv(rows, end=rng.choice(("\n", "\r\n", "\r", "\n\r")))
    mark = rng.choice((b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"))
    return "data.csv", mark + content.encode()


def _mixed(rng: random.Random) -> tuple[str, bytes]:
    """Write every line in an encoding of its own."""
    lines = _csv(_rows(rng)).replace("day", "Tag für Grüße").splitlines()
    encodings = rng.choice((("utf-8", "latin-1"), ("utf-8", "utf-16-le"), ("cp1252", "utf-8-sig")))
    return "data.csv", b"\n".join(line.encode(rng.choice(encodings)) for line in lines)


def _labels(rng: random.Random) -> tuple[str, bytes]:
    words: tuple[str, ...] = rng.choice((
        ("one",), ("a", "ab"), ("a", ""), (" a", "b"), ("a b", "a  c"), ("x" * 5000, "y"),
        tuple(map(str, range(101))), ("\x1b[2J", "b"), ("=1", "-1"), ("<b>", "|"), ("a", "a "),
        ("\n", "b"), ("😀", "😢"), ("nan", "None"), ("1", "1.0"), ("a,b", 'c"d'),
    ))  # fmt: skip
    rows = [(text, words[i % len(words)]) for i, (text, _) in enumerate(_rows(rng, 60))]
    if rng.random() < 0.2:
        rows = [(text, words[0] if i else words[-1]) for i, (text, _) in enumerate(rows)]
    return "data.csv", _csv(rows).encode()


def _columns(rng: random.Random) -> tuple[str, bytes]:
    header = rng.choice((
        "text,text", "label,label", "Text,Label", "text;label", "text", "", "a,b", ",",
        "text,label,",
        "text,label,text", " text , label ", '"text","label', "\x00,label", "text\tlabel",
    ))  # fmt: skip
    return rng.choice(("data.csv", "data.tsv")), _csv(_rows(rng), header=header).encode()


def _sizes(rng: random.Random) -> tuple[str, bytes]:
    """Nothing, next to nothing, the same again and again, and 10 MB in one field."""
    rows = _rows(rng)
    kind = rng.randrange(9)
    if kind == 0 and rng.random() < 0.3:  # a quarter of a second each
        return "data.csv", _csv([("x" * 10_000_000, "negative"), *rows]).encode()
    if kind == 1 and rng.random() < 0.3:
        return "data.csv", ("text,label\n" + "," * 1_000_000).encode()
    return rng.choice((
        ("data.csv", b""), ("data.csv", b"text,label"), ("data.csv", b"text,label\n"),
        ("data.csv", b"\n" * 1000), ("data.csv", b"text,label\n\n\n"), ("data.jsonl", b""),
        ("data.jsonl", b"\n\n"), ("data.parquet", b""), ("data.tsv", b"\t"),
        ("data.csv", _csv([rows[0], rows[1]] * 20).encode()),
        ("data.csv", _csv(rows[:1]).encode()), ("data.csv", _csv(rows[:3]).encode()),
        ("data.csv", _csv([("x" * 100_000, "negative"), *rows]).encode()),
        ("data.csv", _csv([(" ", "negative"), *rows]).encode()),
        ("data.txt", _csv(rows).encode()), ("data", _csv(rows).encode()),
        ("data.csv.gz", _csv(rows).encode()),
    ))  # fmt: skip


def _jsonl(rng: random.Random) -> tuple[str, bytes]:
    lines = [json.dumps({"text": text, "label": label}) for text, label in _rows(rng)]
    for _ in range(rng.randint(1, 2)):
        lines[rng.randrange(len(lines))] = rng.choice((
            "", "{}", "[]", "null", "1", '"text"', "{", '{"text": 1, "label": "a"}',
            '{"text": null, "label": null}', '{"text": "a"}', '{"text": "\\ud800", "label": "a"}',
            '{"text": "a", "label": NaN}', '{"text": "a", "label": 1e999}',
            '{"text": "a", "label": [1]}', '{"text": "a", "label": true}', "[" * 100_000,
            '{"text": "a", "label": ' + "9" * 5000 + "}",
            '{"text": "a", "text": "b", "label": "c"}',
            '{"text": "a\x00b", "label": "negative"}', "\ufeff" + lines[0], lines[0] + lines[1],
            '{"text": "a", "label": {"b": 1}}', "{'text': 'a', 'label': 'b'}", "\x00",
        ))  # fmt: skip
    content = "\n".join(lines).encode()
    return rng.choice(("data.jsonl", "data.ndjson")), (
        content if rng.random() < 0.8 else content[: rng.randrange(len(content))]
    )


def _parquet(rng: random.Random) -> tuple[str, bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    rows = _rows(rng)
    texts, labels = [row[0] for row in rows], [row[1] for row in rows]
    columns: dict[str, Any] = rng.choice((
        {"text": texts, "label": labels}, {"text": texts, "label": [i % 2 for i in range(40)]},
        {"text": texts, "label": [i % 2 == 0 for i in range(40)]}, {"text": list(range(40))},
        {"text": texts, "label": [i % 2 + 0.5 for i in range(40)]},
        {"text": [None, *texts[1:]], "label": labels},
        {"text": texts, "label": [None, *labels[1:]]},
        {"text": texts, "label": [[label] for label in labels]},
        {"text": [text.encode() for text in texts], "label": labels},
        {"text": [{"a": text} for text in texts], "label": labels}, {"a": texts, "b": labels},
        {"text": [], "label": []},
    ))  # fmt: skip
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    content = bytearray(file.getvalue())
    what = rng.random()
    if what < 0.3:
        del content[rng.randrange(len(content)) :]
    elif what < 0.6:
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif what < 0.7:
        content[-8:-4] = struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1)))
    return "data.parquet", bytes(content)


def _sentiment140(rng: random.Random) -> tuple[str, bytes]:
    """Six columns without a header, in ISO-8859-1, and what may be wrong with them."""
    lines = [
        f'"{rng.choice("04")}","{i}","Mon Apr 06","NO_QUERY","user","{text} \xe9"'
        for i, (text, _) in enumerate(_rows(rng))
    ]
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(lines))
        lines[at] = rng.choice((
            lines[at][:-1], lines[at] + ',"x"', lines[at].replace('"0"', '"2"'), "", '"', ",,,,,",
            lines[at].replace("NO_QUERY", 'a"b'), lines[at].replace("day", "day\nmore"), "\x00",
            lines[at][: rng.randrange(len(lines[at]) + 1)],
        ))  # fmt: skip
    return "data.csv", rng.choice(("\n", "\r\n", "\r")).join(lines).encode("latin-1")


def _binary_data(rng: random.Random) -> tuple[str, bytes]:
    return rng.choice(("data.csv", "data.tsv", "data.jsonl", "data.parquet")), _binary(rng)
