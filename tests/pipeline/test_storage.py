"""Files on this machine and at URLs, read by name."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline import storage
from pipeline.storage import (
    fetch_file,
    list_files,
    names_below,
    open_file,
    patiently,
    read_file,
    remove_all,
    store_file,
    version_at,
)
from unet_core.errors import DataError, StorageError


def test_a_file_below_a_folder_is_read_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"seven")
    found = read_file(str(tmp_path), "a.txt")
    assert (found.name, found.data) == (f"{tmp_path}/a.txt", b"seven")


def test_a_file_at_a_url_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"seven")
    assert read_file(f"file://{tmp_path}", "a.txt").data == b"seven"


@pytest.mark.parametrize("root", ["", "file://"])
@pytest.mark.parametrize("name", ["gone.png", "."])
def test_what_is_no_file_is_named(tmp_path: Path, root: str, name: str) -> None:
    with pytest.raises(DataError) as caught:
        read_file(f"{root}{tmp_path}", name)
    assert str(caught.value) == f"a file is missing: {root}{tmp_path}/{name}. Restore it, or remove the sample."


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("root", ["", "file://"])
def test_all_files_are_listed_and_a_hidden_folder_as_one(tmp_path: Path, root: str) -> None:
    put(tmp_path, "b/c d.png", "a.txt", "b/.x", ".git/1", ".git/deep/2")
    assert list_files(f"{root}{tmp_path}") == [".git/", "a.txt", "b/.x", "b/c d.png"]


def test_a_name_is_no_pattern_for_whoever_reads_it(tmp_path: Path) -> None:
    put(tmp_path, "a*[1]?::b.png", "a1.png")
    assert read_file(f"file://{tmp_path}", "a*[1]?::b.png").data == b"x"
    with open_file(f"file://{tmp_path}", "a1.png") as stream:
        assert stream.read() == b"x"


@pytest.mark.parametrize("root", ["", "file://"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, root: str) -> None:
    with pytest.raises(DataError) as caught:
        list_files(f"{root}{tmp_path}/none")
    assert str(caught.value) == (
        f"no such folder: {root}{tmp_path}/none. Correct ingest.source in params.yaml, or restore the data."
    )


@pytest.mark.parametrize("kind", ["file", "folder", "relative", "broken"])
def test_a_link_out_of_the_source_is_refused_and_named(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "source/a.png", "secret/b.png")
    target = {"file": "secret/b.png", "folder": "secret", "relative": "secret/b.png", "broken": "gone"}[kind]
    link = tmp_path / "source" / "link"
    link.symlink_to(Path("..") / target if kind == "relative" else tmp_path / target)
    with pytest.raises(DataError) as caught:
        list_files(str(tmp_path / "source"))
    assert str(caught.value) == (
        f"a link leads out of the source: {link} -> {tmp_path / target}. "
        "Put the file itself there, or allow such links with ingest.follow_links: true."
    )
    found = list_files(str(tmp_path / "source"), follow_links=True)
    assert found == (["a.png", "link/b.png"] if kind == "folder" else ["a.png", "link"])


def test_links_inside_the_source_and_a_source_that_is_a_link_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "real/sub/a.png")
    (tmp_path / "source").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "b.png").symlink_to("sub/a.png")
    assert list_files(str(tmp_path / "source")) == ["b.png", "sub/a.png"]


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    put(tmp_path, "source/sub/a.png")
    (tmp_path / "source" / "sub" / "up").symlink_to(tmp_path / "source")
    (tmp_path / "source" / "other").symlink_to(tmp_path / "source" / "sub")
    assert list_files(str(tmp_path / "source")) == ["other/a.png", "sub/a.png"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a\udcff.png").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        list_files(str(tmp_path))
    assert str(caught.value) == f"a name that is no UTF-8: {tmp_path}: 'a\\udcff.png'. Rename the file."


def test_an_address_of_an_unknown_kind_is_refused_without_its_password() -> None:
    with pytest.raises(StorageError) as caught:
        read_file("nowhere://me:secret@host/folder", "a.png")
    text = str(caught.value)
    assert text.startswith("a place can't be reached: nowhere://***@host/folder/a.png: ")
    assert "secret" not in text


def test_a_pipe_in_the_source_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"^not a file: .*/pipe: a pipe, socket or device\. Remove it\."):
        list_files(str(tmp_path))


@pytest.fixture(params=["", "file://", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet, by its path and by URLs."""
    return f"{request.param}{tmp_path}/deep/place"


def test_what_is_stored_comes_back_and_can_be_removed(tmp_path: Path, place: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"seven")
    assert names_below(place) == []
    for name in ("b/c.txt", "a.txt"):
        store_file(tmp_path / "a.txt", place, name)
    assert names_below(place) == ["a.txt", "b/c.txt"]
    fetch_file(place, "b/c.txt", tmp_path / "back.txt", missing="Look again.")
    assert (tmp_path / "back.txt").read_bytes() == b"seven"
    remove_all(f"{place}/b")
    assert names_below(place) == ["a.txt"]
    for _ in range(2):
        remove_all(place)
    assert names_below(place) == []


def test_a_listing_sees_what_came_since_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"seven")
    for number in range(3):
        store_file(tmp_path / "a.txt", f"memory://{tmp_path}", f"{number}.txt")
        assert len(names_below(f"memory://{tmp_path}")) == number + 1


def test_fetching_what_is_not_there_says_what_to_do(tmp_path: Path, place: str) -> None:
    with pytest.raises(DataError) as caught:
        fetch_file(place, "gone.txt", tmp_path / "back.txt", missing="Look again.")
    assert str(caught.value) == f"a file is missing: {place}/gone.txt. Look again."


@pytest.mark.parametrize("root", ["", "file://", "memory://"])
def test_another_file_in_a_files_place_has_another_version(tmp_path: Path, root: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"seven")
    (tmp_path / "b.txt").write_bytes(b"eleven")
    place = f"{root}{tmp_path}/place"
    Path(tmp_path, "place").mkdir()
    store_file(tmp_path / "a.txt", place, "c.txt")
    before = version_at(f"{place}/c.txt")
    assert version_at(f"{place}/c.txt") == before != ""
    store_file(tmp_path / "b.txt", place, "c.txt")
    assert version_at(f"{place}/c.txt") != before
    with pytest.raises(DataError, match=r"^a file is missing: .*/place/gone\.txt\."):
        version_at(f"{place}/gone.txt")


class SignedRedirects(BaseHTTPRequestHandler):
    """Leads each request for a file to an address that was never given before, as signed ones are."""

    content = b"seven"
    count = 0

    def do_HEAD(self) -> None:
        if "?" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content)))
        else:
            type(self).count += 1
            self.send_response(302)
            self.send_header("Location", f"{self.path}?signature={self.count}")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_redirect_that_is_signed_anew_makes_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SignedRedirects) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/a.png"
        before = version_at(address)
        assert version_at(address) == before
        assert SignedRedirects.count >= 2
        monkeypatch.setattr(SignedRedirects, "content", b"eleven")
        assert version_at(address) != before
        server.shutdown()


def test_a_place_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.001)
    answers = iter([StorageError("away"), StorageError("away"), "here"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    assert patiently(ask) == "here"


def test_patience_with_a_place_that_stays_away_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.01)

    def ask() -> str:
        raise StorageError("away")

    with pytest.raises(StorageError, match="away"):
        patiently(ask)
