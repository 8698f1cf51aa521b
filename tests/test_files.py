import errno
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tgsent import files
from tgsent.errors import StorageError
from tgsent.files import show_size, storage_errors, to_json, write_atomic


def relative_files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_permissions_that_the_user_wants(
    mask: int, mode: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    before = os.umask(mask)
    try:
        write_atomic(path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("mine")
    (tmp_path / ".a.json.tmp").symlink_to(victim)
    write_atomic(path, "new")
    assert (victim.read_text(), path.read_text()) == ("mine", "new")
    assert not path.is_symlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_path_and_space(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        write_atomic(path, "x" * 3_000_000)
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        f"{path}: cannot be written: {os.strerror(number)}; it needs 3.0 MB and "
    )
    assert first.endswith(" are left there")
    assert second.endswith("free some space, then run the same command again to resume")
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.json"])


def test_errors_of_libraries_in_rust_are_understood(tmp_path: Path) -> None:
    with (
        pytest.raises(
            StorageError,
            match=r"x: cannot be written: No space left on device; it needs 0\.0 kB and",
        ),
        storage_errors(tmp_path / "x", 7),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"), storage_errors(tmp_path / "x"):
        raise RuntimeError("something else")


@pytest.mark.parametrize("place", ["file/a.json", "folder", f"{'x' * 300}.json"])
def test_a_place_where_no_file_can_be_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder/inner").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be written: ") as caught:
        write_atomic(tmp_path / place, "new")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0.0 kB"), (99_000, "99.0 kB"), (1_500_000, "1.5 MB"), (2_340_000_000, "2.3 GB")],
)
def test_show_size(size: int, shown: str) -> None:
    assert show_size(size) == shown


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path.name, names(tmp_path))))
    write_atomic(tmp_path / "a", "new")
    assert synced == [(".a.tmp", [".a.tmp"]), (tmp_path.name, ["a"])]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSPC])
def test_a_folder_whose_names_cannot_be_held_is_told_unless_it_knows_no_such_thing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(path: Path) -> None:
        if path == tmp_path:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "sync", sync)
    if number == errno.EINVAL:
        write_atomic(tmp_path / "a", "new")
    else:
        with pytest.raises(StorageError, match=r"a: cannot be written: No space left"):
            write_atomic(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]


def test_writing_makes_folders_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.txt"
    write_atomic(path, "old, and longer")
    write_atomic(path, "new \u20ac\r\n")
    assert path.read_bytes() == "new \u20ac\r\n".encode()
    assert relative_files(tmp_path) == ["a/b/c.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_content_alone(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert relative_files(tmp_path) == ["results.json"]


def test_the_new_content_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, "old")
    seen = []

    def look(descriptor: int) -> None:
        seen.append((path.read_text(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", look)
    write_atomic(path, "newer")
    assert seen[0] == ("old", 5)
    assert seen[1][0] == "newer", "the folder, with the new name in it"


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tgsent.files import write_atomic\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomic(Path(sys.argv[1]), 'x' * 1000)"
    )
    path = tmp_path / "results.json"
    path.write_text("old")
    subprocess.run([sys.executable, "-c", script, str(path)])
    assert path.read_text() == "old"
    assert len(relative_files(tmp_path)) == 2
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert relative_files(tmp_path) == ["results.json"]


def test_json_is_readable_and_refuses_what_is_no_json() -> None:
    assert to_json({"label": "schön"}) == '{\n  "label": "schön"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": float("nan")})


def test_json_holds_nothing_that_a_terminal_obeys() -> None:
    text = to_json({"text": "\x1b[2J\x9b31m\x7f"})
    assert text.isprintable() or not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert json.loads(text) == {"text": "\x1b[2J\x9b31m\x7f"}


def test_nobody_else_reads_the_cache(tmp_path: Path) -> None:
    with files.atomic_writer(tmp_path / "cache" / "sample") as file:
        file.write(b"a text of the user")
    assert stat.S_IMODE((tmp_path / "cache" / "sample").stat().st_mode) == 0o600
