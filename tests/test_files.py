"""Files on every kind of disk: nothing foreign is replaced, names may be long, a system's limits are fine."""

import errno
import json
import os
import signal
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from helpers import assert_one_line, contents

from bertlab.core import files
from bertlab.core.files import (
    BertlabError,
    atomic_path,
    cache_dir,
    file_sha256,
    fingerprint,
    folder_lock,
    holds_only,
    hub_errors,
    read_json,
    read_json_object,
    verify_checksums,
    write_checksums,
    write_json,
)
from bertlab.core.records import check_run_folder
from bertlab.core.saving import build_model

posix = pytest.mark.skipif(os.name != "posix", reason="pipes, links and bytes as names are POSIX's")


@pytest.fixture
def results(tmp_path):
    "Somebody's folder."
    (tmp_path / "results" / "plots").mkdir(parents=True)
    (tmp_path / "results" / "thesis.txt").write_text("three years of work")
    (tmp_path / "results" / "plots" / "a.png").write_bytes(b"png")
    return tmp_path / "results"


@pytest.fixture
def time_limit():
    "A test that hangs fails after ten seconds."

    def stop(number, frame):
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


# ---------------------------------------------------------------- what is not ours


@pytest.mark.parametrize("replaces", [None, holds_only("thesis.txt"), holds_only("model.safetensors")])
def test_a_foreign_folder_is_never_replaced(tmp_path, results, replaces):
    before, entered = contents(tmp_path), False
    with pytest.raises(BertlabError) as caught, atomic_path(results, replaces) as tmp:
        entered = True
        tmp.write_text("id,target")
    assert_one_line(caught, str(results), "holds other files", "Choose another name")
    assert not entered and contents(tmp_path) == before  # refused before anything was computed


def test_an_empty_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BertlabError, match="is a folder, not a file"):
        write_json(tmp_path / "empty", {})
    assert contents(tmp_path) == {"empty": None}


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BertlabError, match="cannot be written"), atomic_path(tmp_path / "notes") as tmp:
        tmp.mkdir()
        (tmp / "model").write_text("new")
    assert contents(tmp_path) == {"notes": b"mine"}


def test_a_folder_of_ours_is_replaced_as_a_whole(tmp_path):
    for version in ("old", "new"):
        with atomic_path(tmp_path / "model", holds_only("weights", "config")) as tmp:
            tmp.mkdir()
            (tmp / ("weights" if version == "old" else "config")).write_text(version)
    assert contents(tmp_path) == {"model": None, "model/config": b"new"}


def test_a_folder_of_ours_with_something_of_others_stays(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("weights", "notes.txt"):
        (tmp_path / "model" / name).write_text(name)
    before = contents(tmp_path)
    with pytest.raises(BertlabError), atomic_path(tmp_path / "model", holds_only("weights")) as tmp:
        tmp.mkdir()
    assert contents(tmp_path) == before


@posix
def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "disk" / "real.json")
    (tmp_path / "models").symlink_to(tmp_path / "disk" / "models")
    for version in (1, 2):
        write_json(tmp_path / "link.json", version)
        with atomic_path(tmp_path / "models", holds_only("w")) as tmp:
            tmp.mkdir()
            (tmp / "w").write_text(str(version))
    assert (tmp_path / "link.json").is_symlink() and read_json(tmp_path / "disk" / "real.json") == 2
    assert (tmp_path / "models").is_symlink() and (tmp_path / "disk" / "models" / "w").read_text() == "2"


@posix
def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BertlabError, match="is not a regular file"):
        write_json(tmp_path / "pipe", {})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("path", ["/", "//", "/.."])
def test_the_root_is_no_place_to_write_to(path):
    with pytest.raises(BertlabError) as caught, atomic_path(path):
        pass
    assert_one_line(caught, "no place to write to")
    with pytest.raises(BertlabError) as caught, folder_lock(path):
        pass
    assert_one_line(caught, "no place to write to")


def test_the_current_folder_is_a_folder_like_any_other(tmp_path, results, monkeypatch):
    monkeypatch.chdir(results)
    before = contents(tmp_path)
    for path in (".", "", "plots/.."):
        with pytest.raises(BertlabError, match="holds other files"), atomic_path(path) as tmp:
            tmp.write_text("x")
    with folder_lock("."):
        pass
    assert {name: data for name, data in contents(tmp_path).items() if not name.endswith(".lock")} == before


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a" * 230, "a" * 244, "b" * 255, "한" * 81 + "c", "한" * 85, "é" * 127])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    with folder_lock(tmp_path / name), atomic_path(tmp_path / name) as tmp:
        tmp.mkdir()
        write_json(tmp / name, name)
    assert read_json(tmp_path / name / name) == name
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == [name]


def test_long_names_with_one_beginning_do_not_share_a_lock(tmp_path):
    with folder_lock(tmp_path / ("a" * 250 + "1")), folder_lock(tmp_path / ("a" * 250 + "2"), wait=False):
        pass


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(BertlabError) as caught:
        write_json(tmp_path / ("a" * 256), {})
    assert_one_line(caught, "cannot be written", "too long")


@posix
def test_names_and_texts_with_half_a_surrogate_pair(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.json")  # a name in Latin-1 is "caf\udce9" to Python
    write_json(path, {"file": str(path), "text": "\ud83d"})
    assert read_json(path) == {"file": str(path), "text": "\ud83d"}
    assert fingerprint(["\ud83d"]) != fingerprint(["\ude00"])
    with folder_lock(path):
        pass


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("text", ["{}", "[]", "null", "1", '"text"', "true", '{"kind": 1}'])
def test_json_of_another_shape_is_one_line(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(BertlabError) as caught:
        read_json_object(tmp_path / "record.json", "a run record", ("kind", "result"))
    assert_one_line(caught, "record.json", "is not a run record", "Delete it")


@posix
def test_a_pipe_is_not_waited_for(tmp_path, time_limit):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(BertlabError, match="is not a regular file"):
        read_json(tmp_path / "config.json")


def test_a_folder_is_no_json(tmp_path):
    with pytest.raises(BertlabError) as caught:
        read_json(tmp_path)
    assert_one_line(caught, "cannot be read")


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "a.bin").write_bytes(b"\0" * 999 + b"\1"),
        lambda f: (f / "a.bin").unlink(),
        lambda f: (f / "a.bin").write_bytes(b""),
        lambda f: (f / "checksums.json").write_text("null"),
        lambda f: (f / "checksums.json").write_text("{"),
        lambda f: (f / "checksums.json").write_text("{}"),
        lambda f: (f / "checksums.json").unlink(),
    ],
)
def test_checksums_notice_every_change(tmp_path, damage):
    (tmp_path / "a.bin").write_bytes(b"\0" * 1000)
    (tmp_path / "b.txt").write_text("b")
    write_checksums(tmp_path)
    verify_checksums(tmp_path, "a.bin", "b.txt")
    damage(tmp_path)
    with pytest.raises(BertlabError) as caught:
        verify_checksums(tmp_path, "a.bin", "b.txt")
    assert_one_line(caught, str(tmp_path))


def test_large_files_are_hashed_in_pieces(tmp_path):
    data = os.urandom(3 * 2**20 + 5)
    (tmp_path / "big").write_bytes(data)
    assert file_sha256(tmp_path / "big") == files.hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- Windows and network folders


def test_windows_opens_no_folder_and_syncs_no_file_opened_for_reading(tmp_path, monkeypatch):
    real_open, real_fsync, readers = os.open, os.fsync, set()

    def windows_open(path, flags, *args, **kwargs):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        fd = real_open(path, flags, *args, **kwargs)
        (readers.discard if flags & os.O_RDWR else readers.add)(fd)
        return fd

    synced = []

    def windows_fsync(fd):
        if fd in readers:
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced.append(fd)
        real_fsync(fd)

    monkeypatch.setattr(files.os, "open", windows_open)
    monkeypatch.setattr(files.os, "fsync", windows_fsync)
    write_json(tmp_path / "a.json", 1)
    with atomic_path(tmp_path / "model") as tmp:
        tmp.mkdir()
        (tmp / "w").write_text("weights")
        (tmp / "w").chmod(0o444)
    assert read_json(tmp_path / "a.json") == 1 and (tmp_path / "model" / "w").read_text() == "weights"
    assert synced  # files are still synced


def test_a_drive_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    "As Z: is on Windows, where not even the last of the parents exists; seen before: StopIteration."
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    for check in (files.check_output_folder, files.check_writable, check_run_folder):
        with pytest.raises(BertlabError) as caught:
            check(tmp_path / "run")
        assert_one_line(caught, tmp_path / "run", "lies on a drive that is not there")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_network_folder_need_not_sync_directories(tmp_path, monkeypatch, code):
    real = os.fsync

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_json(tmp_path / "a.json", [1])
    assert read_json(tmp_path / "a.json") == [1]


def test_a_disk_that_fails_to_sync_is_an_error(tmp_path, monkeypatch):
    def fsync(fd):
        raise OSError(errno.EIO, "Input/output error")

    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(BertlabError, match=r"cannot be written \(Input/output error\)"):
        write_json(tmp_path / "a.json", "new")
    assert read_json(tmp_path / "a.json") == "old"


@pytest.mark.parametrize("times", [1, 5, 10**6])
def test_a_file_that_is_open_elsewhere_is_replaced_when_it_is_closed(tmp_path, monkeypatch, times):
    real, calls = os.replace, []

    def windows_replace(source, target):
        calls.append(target)
        if len(calls) <= times:
            error = PermissionError(errno.EACCES, "The process cannot access the file")
            error.winerror = 32
            raise error
        real(source, target)

    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(files.os, "replace", windows_replace)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    if times < 10:
        write_json(tmp_path / "a.json", "new")
        assert read_json(tmp_path / "a.json") == "new"
    else:
        with pytest.raises(BertlabError) as caught:
            write_json(tmp_path / "a.json", "new")
        assert_one_line(caught, "a.json", "Close the program that uses it")
        assert read_json(tmp_path / "a.json") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# ---------------------------------------------------------------- where nothing may be written


def refuse_to_lock(code):
    def acquire(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    return acquire


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_where_nothing_may_be_written_nobody_needs_a_lock(tmp_path, monkeypatch, code):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(FileLock, "acquire", refuse_to_lock(code))
    with folder_lock(tmp_path / "run", wait=False) as folder:
        assert folder == tmp_path / "run"
    with pytest.raises(BertlabError) as caught, folder_lock(tmp_path / "new"):
        pass
    assert_one_line(caught, "new", "cannot be written to", "Choose another folder")


def test_another_failure_to_lock_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", refuse_to_lock(errno.ENOSPC))
    with pytest.raises(BertlabError) as caught, folder_lock(tmp_path):
        pass
    assert_one_line(caught, "cannot be written to", "No space left")


@posix
def test_without_a_home_folder_the_cache_needs_a_name(tmp_path, monkeypatch):
    pwd = pytest.importorskip("pwd")

    def no_entry(uid):
        raise KeyError(uid)

    for name in ("HOME", "BERTLAB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(BertlabError) as caught:
        cache_dir()
    assert_one_line(caught, "no home folder", "BERTLAB_CACHE")
    monkeypatch.setenv("BERTLAB_CACHE", "~/cache")
    with pytest.raises(BertlabError, match="no home folder"):
        cache_dir()
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b"


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/cache"):
        monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / name))
        with pytest.raises(BertlabError) as caught:
            cache_dir()
        assert_one_line(caught, "the cache cannot be made", "BERTLAB_CACHE")


@posix
@pytest.mark.parametrize(
    ("text", "line"), [("", "RuntimeError"), ("\n \n", "RuntimeError"), ("\nIt broke.\nBadly.", "It broke")]
)
def test_an_error_of_a_library_is_told_in_its_first_line(tmp_path, text, line):
    "Seen before: an IndexError, where the message is empty."
    assert files.first_line(RuntimeError(text)) == line

    def build():
        raise RuntimeError(text)

    with pytest.raises(BertlabError) as caught:
        build_model(build, {}, tmp_path / "model.safetensors")
    assert_one_line(caught, f"config.json: the config describes no model ({line}). Save")


def test_a_tilde_in_the_cache_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BERTLAB_CACHE", "~/cache")
    assert cache_dir() == tmp_path / "cache"


def test_json_is_written_with_its_own_characters(tmp_path):
    write_json(tmp_path / "a.json", {"말": "뭉치", "x": SimpleNamespace(a=1).a})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf8")) == {"말": "뭉치", "x": 1}
    assert "뭉치" in (tmp_path / "a.json").read_text(encoding="utf8")


# ---------------------------------------------------------------- the hub's errors, with its own classes


@pytest.mark.parametrize(
    ("kind", "status", "advice"),
    [
        ("RepositoryNotFoundError", 401, "hf auth login"),
        ("GatedRepoError", 403, "hf auth login"),
        ("HfHubHTTPError", 404, "hf auth login"),
        ("HfHubHTTPError", 503, "Check the internet connection"),
        ("HfHubHTTPError", 429, "Check the internet connection"),
        ("HfHubHTTPError", 416, "See https://huggingface.co/datasets/someone/rain."),
    ],
)
def test_what_the_hub_refuses_says_what_helps(kind, status, advice):
    "Seen before: whatever happened, the advice was to check the connection."
    kinds = pytest.importorskip("huggingface_hub.errors", reason="needs the extra hub")
    answer = SimpleNamespace(status_code=status, headers={}, request=None)
    error = getattr(kinds, kind)("no\n such thing", response=answer)
    with pytest.raises(BertlabError) as caught, hub_errors("datasets/someone/rain"):
        raise error
    assert_one_line(caught, "rain: cannot be read from the hub (", f"{kind}: no", advice)


def test_no_way_to_the_hub_and_no_room_are_told_apart():
    kinds = pytest.importorskip("huggingface_hub.errors", reason="needs the extra hub")
    for error in (
        kinds.OfflineModeIsEnabled("offline"),
        kinds.LocalEntryNotFoundError("not here"),
        TimeoutError(),
    ):
        with pytest.raises(BertlabError, match="Check the internet connection"), hub_errors("someone/bert"):
            raise error
    with pytest.raises(OSError, match="No space left"), hub_errors("someone/bert"):
        raise OSError(errno.ENOSPC, "No space left on device")
