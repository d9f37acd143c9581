"""OpenAI's file API, met as callers meet it: with openai's client and plain HTTP on loopback.

What the store does is in `test_files`.
"""

import hashlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import FileObject
from starlette.types import Scope

from beyond import answer_complaint
from openai_schema import ERROR
from proxy.app import create_app
from proxy.config import Config
from proxy.file_routes import is_signed_link
from serving import PATIENCE_S, LoopThread, serve_app
from tools.file_root import FileRoot
from tools.files import FileStore

FILES = "/v1/files"
ADAS, BOBS = "sk-adas-own", "sk-bobs-own"
UNKNOWN = "file-" + "0" * 24

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
HTML = b"<!doctype html><script>alert(1)</script>"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"

#: So much beside the file a form may hold.
ROOM = 64 * 1024


def entry(name: str, key: str) -> dict[str, str]:
    """A key of the configuration."""
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}


KEYED: dict[str, Any] = {"api_keys": [entry("ada", ADAS), entry("bob", BOBS)]}


class Served:
    """A Florette with files, and clients in front of it."""

    def __init__(self, url: str, files_dir: Path, clients: ExitStack) -> None:
        self.url = url
        self.files_dir = files_dir
        self._clients = clients

    def sdk(self, key: str = ADAS) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)
        return self._clients.enter_context(client)

    def http(self, key: str | None = ADAS) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return self._clients.enter_context(httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S))

    def blobs(self) -> list[str]:
        return sorted(path.name for path in (self.files_dir / "blobs").iterdir())


Serve = Callable[..., Served]


@pytest.fixture
def serve(loop_thread: LoopThread, nowhere: str, tmp_path: Path) -> Iterator[Serve]:
    """Starts a Florette with a directory of its own."""
    with ExitStack() as running:

        def start(**config: Any) -> Served:
            config = {"upstream": f"{nowhere}/v1", "files_dir": tmp_path / "files", "retries": 0, **config}
            url = running.enter_context(serve_app(create_app(Config.model_validate(config)), loop_thread))
            return Served(url, config["files_dir"], running)

        yield start


@pytest.fixture(scope="module")
def module_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def shared(loop_thread: LoopThread, nowhere: str, module_dir: Path) -> Iterator[Served]:
    """A Florette for all tests to which it does not matter what else is kept."""
    config = Config(upstream=f"{nowhere}/v1", files_dir=module_dir, file_max_bytes=100_000, **KEYED)
    with ExitStack() as running:
        url = running.enter_context(serve_app(create_app(config), loop_thread))
        yield Served(url, module_dir, running)


def form(data: bytes = b"x", name: str = "x.txt", kind: str = "text/plain") -> dict[str, Any]:
    """A request's form with a file."""
    return {"files": {"file": (name, data, kind)}, "data": {"purpose": "user_data"}}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer_complaint(ERROR, answer.json()) is None
    error: dict[str, Any] = answer.json()["error"]
    return error


def signature_of(served: Served, file_id: str, loop_thread: LoopThread) -> str:
    """As the loop signs a link for a page."""

    async def sign() -> str:
        store = FileStore(served.files_dir, max_file_bytes=1, quota_bytes=1, ttl_s=None)
        try:
            return await store.sign(file_id)
        finally:
            await store.aclose()

    return loop_thread.run(sign())


# -- openai's client ---------------------------------------------------------------------------------------


def test_the_sdk_goes_all_the_way(serve: Serve) -> None:
    sdk = serve(**KEYED).sdk()
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(UNKNOWN)
    file = sdk.files.create(file=("notes.txt", b"some notes"), purpose="user_data")
    assert re.fullmatch(r"file-[0-9a-f]{24}", file.id)
    assert FileObject.model_validate(file.model_dump(), strict=True) == file
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", 10, "notes.txt", "user_data")
    assert (file.status, file.expires_at) == ("processed", file.created_at + 604_800)
    assert sdk.files.retrieve(file.id) == file
    assert sdk.files.list().data == [file]
    assert sdk.files.content(file.id).read() == b"some notes"
    assert sdk.files.wait_for_processing(file.id) == file
    deleted = sdk.files.delete(file.id)
    assert deleted.model_dump() == {"id": file.id, "object": "file", "deleted": True}
    assert sdk.files.list().data == []
    with pytest.raises(openai.NotFoundError) as told:
        sdk.files.content(file.id)
    assert (told.value.code, told.value.param) == ("file_not_found", "id")


async def test_the_async_sdk_does_so_too(shared: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key=ADAS, max_retries=0) as sdk:
        file = await sdk.files.create(file=b"\0" * 50_000, purpose="vision")
        assert (await sdk.files.content(file.id)).content == b"\0" * 50_000
        assert file.id in [other.id async for other in sdk.files.list(limit=1, purpose="vision")]
        assert (await sdk.files.delete(file.id)).deleted


def test_the_sdk_pages_through_all_files(serve: Serve) -> None:
    sdk = serve(**KEYED).sdk()
    files = [
        sdk.files.create(file=(f"{number}", b"x"), purpose="vision" if number % 2 else "user_data")
        for number in range(5)
    ]
    assert list(sdk.files.list()) == files[::-1]
    assert list(sdk.files.list(limit=2)) == files[::-1]
    assert list(sdk.files.list(limit=2, order="asc")) == files
    assert list(sdk.files.list(limit=1, order="desc", purpose="vision")) == [files[3], files[1]]
    assert list(sdk.files.list(after=files[3].id)) == files[2::-1]
    for file in sdk.files.list(limit=2):
        sdk.files.delete(file.id)
    assert list(sdk.files.list()) == []


def test_a_list_tells_its_ends(serve: Serve) -> None:
    http = serve().http()
    empty: dict[str, Any] = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert http.get(FILES).json() == empty
    ids = [http.post(FILES, **form()).json()["id"] for _ in range(3)]
    page = http.get(FILES, params={"limit": 2, "order": "asc"}).json()
    assert [file["id"] for file in page["data"]] == ids[:2]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (*ids[:2], True)


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(None, 3600), (7200, 3600), (1800, 1800)])
def test_a_file_expires_when_its_caller_or_the_operator_wants_it(serve: Serve, ttl_s: int | None, kept_s: int) -> None:
    sdk = serve(files_ttl_s=ttl_s).sdk()
    wanted: Any = {"anchor": "created_at", "seconds": 3600}
    file = sdk.files.create(file=b"x", purpose="user_data", expires_after=wanted)
    assert file.expires_at == file.created_at + kept_s


def test_files_may_last_for_ever(serve: Serve) -> None:
    answer = serve(files_ttl_s=None).http().post(FILES, **form()).json()
    assert answer["expires_at"] is None


def test_without_keys_everyone_is_the_same(serve: Serve) -> None:
    served = serve()
    file = served.sdk("sk-any").files.create(file=b"x", purpose="user_data")
    assert served.http(None).get(f"{FILES}/{file.id}").json()["id"] == file.id


def test_files_survive_the_server(serve: Serve, loop_thread: LoopThread, nowhere: str) -> None:
    served = serve()
    file = served.sdk().files.create(file=b"x", purpose="user_data")
    config = Config(upstream=f"{nowhere}/v1", files_dir=served.files_dir)
    with serve_app(create_app(config), loop_thread) as url:
        assert httpx.get(f"{url}{FILES}/{file.id}/content").content == b"x"


def test_a_directory_that_cannot_be_used_is_told_at_the_start(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="did not start"):
        serve(files_dir=tmp_path / "file" / "below")


# -- whose it is -------------------------------------------------------------------------------------------


def ways_to(file_id: str) -> list[tuple[str, str]]:
    return [
        ("GET", f"{FILES}/{file_id}"),
        ("GET", f"{FILES}/{file_id}/content"),
        ("DELETE", f"{FILES}/{file_id}"),
        ("GET", f"{FILES}?after={file_id}"),
    ]


def test_anothers_file_is_as_one_that_never_was(shared: Served) -> None:
    file_id = shared.http().post(FILES, **form(b"secret", "secret.txt")).json()["id"]
    bob = shared.http(BOBS)
    for (method, path), (_, nowhere) in zip(ways_to(file_id), ways_to(UNKNOWN), strict=True):
        told, unknown = bob.request(method, path), bob.request(method, nowhere)
        assert told.status_code == unknown.status_code == 404
        assert error_of(told) == error_of(unknown) | {"message": f"No such file: {file_id}."}
        assert error_of(told)["code"] == "file_not_found"
    assert bob.get(FILES).json()["data"] == []
    assert shared.http().get(f"{FILES}/{file_id}/content").content == b"secret"


def test_who_has_no_key_sees_no_file(shared: Served) -> None:
    file_id = shared.http().post(FILES, **form()).json()["id"]
    nobody = shared.http(None)
    for method, path in [*ways_to(file_id), ("POST", FILES), ("GET", FILES), ("HEAD", f"{FILES}/{file_id}/content")]:
        assert nobody.request(method, path).status_code == 401


@pytest.mark.parametrize("file_id", ["x", "..%2F..%2Ffiles.db", "%00", "file-%F0%9F", "x" * 5000])
def test_what_is_no_id_is_no_file(shared: Served, file_id: str) -> None:
    for method, path in ways_to(file_id):
        answer = shared.http().request(method, path)
        assert answer.status_code == 404
        error_of(answer)


# -- links -------------------------------------------------------------------------------------------------


def test_a_link_opens_an_image_without_a_key(shared: Served, loop_thread: LoopThread) -> None:
    file_id = shared.http().post(FILES, **form(PNG, "a.png")).json()["id"]
    link = f"{FILES}/{file_id}/content?signature={signature_of(shared, file_id, loop_thread)}"
    for client in (shared.http(None), shared.http(BOBS), shared.http("sk-nobodys"), shared.http()):
        answer = client.get(link)
        assert (answer.status_code, answer.content) == (200, PNG)
        assert answer.headers["content-type"] == "image/png"
        assert client.head(link).status_code == 200
    shared.http().delete(f"{FILES}/{file_id}")
    assert shared.http(None).get(link).status_code == 404


def test_a_wrong_signature_leads_nowhere(shared: Served, loop_thread: LoopThread) -> None:
    file_id, other = [shared.http().post(FILES, **form()).json()["id"] for _ in range(2)]
    right = signature_of(shared, file_id, loop_thread)
    for wrong in ("", "x", right[:-1], right + "A", signature_of(shared, other, loop_thread), "%ff", "a&signature="):
        for key in (None, BOBS, ADAS):
            answer = shared.http(key).get(f"{FILES}/{file_id}/content?signature={wrong}")
            assert answer.status_code == 404
            assert error_of(answer)["code"] == "file_not_found"
    assert shared.http(None).get(f"{FILES}/{UNKNOWN}/content?signature={right}").status_code == 404


def test_a_signature_is_for_reading_the_content_alone(shared: Served, loop_thread: LoopThread) -> None:
    file_id = shared.http().post(FILES, **form()).json()["id"]
    signed = f"?signature={signature_of(shared, file_id, loop_thread)}"
    nobody = shared.http(None)
    for method, path in [
        ("GET", f"{FILES}/{file_id}"),
        ("DELETE", f"{FILES}/{file_id}"),
        ("DELETE", f"{FILES}/{file_id}/content"),
        ("POST", f"{FILES}/{file_id}/content"),
        ("GET", f"{FILES}/{file_id}/content/"),
        ("GET", f"{FILES}/{file_id}/content%0A"),
        ("GET", f"/{FILES}/{file_id}/content"),
        ("GET", FILES),
        ("POST", FILES),
        ("GET", "/v1/models"),
    ]:
        assert nobody.request(method, path + signed).status_code == 401, (method, path)
    assert shared.http().get(f"{FILES}/{file_id}").status_code == 200


LINK = f"{FILES}/{UNKNOWN}/content"
paths = st.one_of(
    st.just(LINK),
    st.sampled_from([LINK + "\n", LINK + "/", LINK.upper(), "/x" + LINK, LINK.replace("0", "٠"), FILES, "/", ""]),
    st.text("/v1files-0content.", max_size=50),
)
queries = st.one_of(
    st.sampled_from([b"signature=x", b"signature", b"a=b&signature=", b"", b"xsignature=x"]), st.binary()
)


@given(path=paths, query=queries, method=st.sampled_from(["GET", "HEAD", "POST", "DELETE", "OPTIONS"]))
@settings(max_examples=300)
def test_nothing_but_a_link_is_open(path: str, query: bytes, method: str) -> None:
    scope: Scope = {"type": "http", "path": path, "query_string": query, "method": method}
    if is_signed_link(scope):
        assert path == LINK
        assert b"signature" in query or b"%" in query
        assert method in ("GET", "HEAD")
    else:
        assert (path, method) != (LINK, "GET") or not re.match(rb"(.*&)?signature=", query)


# -- what a browser makes of it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (HTML, "a.html", "text/html"),
        (HTML, "a.png", "image/png"),
        (SVG, "a.svg", "image/svg+xml"),
        (SVG, "a.png", "image/png"),
        (b"alert(1)", "a.js", "text/javascript"),
        (b"%PDF-1.7", "a.pdf", "application/pdf"),
        (b" " + PNG, "a.png", "image/png"),
        (b"", "empty.png", "image/png"),
    ],
)
def test_what_is_no_image_is_a_download_whatever_it_says(shared: Served, data: bytes, name: str, kind: str) -> None:
    http = shared.http()
    file_id = http.post(FILES, **form(data, name, kind)).json()["id"]
    answer = http.get(f"{FILES}/{file_id}/content")
    assert answer.content == data
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cache-control"].startswith("private, max-age=")
    assert "cross-origin-resource-policy" not in answer.headers


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0 and so on", "image/jpeg"),
        (b"GIF89a" + HTML, "image/gif"),
        (b"RIFF0000WEBPVP8 ", "image/webp"),
    ],
)
def test_an_image_is_shown_as_what_its_bytes_are(shared: Served, data: bytes, kind: str) -> None:
    http = shared.http()
    file_id = http.post(FILES, **form(data, "a.html", "text/html")).json()["id"]
    answer = http.get(f"{FILES}/{file_id}/content")
    assert answer.content == data
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-disposition"] == 'inline; filename="a.html"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"


@pytest.mark.parametrize("name", ["文件.txt", "a b.txt", "a;b.txt", "naïve'.txt", "a%41.txt", "é\u202egpj.exe"])
def test_a_name_comes_back_whatever_is_in_it(shared: Served, name: str) -> None:
    http = shared.http()
    file = http.post(FILES, **form(name=f"../../{name}")).json()
    assert file["filename"] == name.replace("\u202e", "")
    disposition = http.get(f"{FILES}/{file['id']}/content").headers["content-disposition"]
    told = re.fullmatch(r"attachment; filename\*=utf-8''([A-Za-z0-9%._~'-]+)", disposition)
    assert told
    assert unquote(told[1]) == file["filename"]


def test_a_part_of_the_content_can_be_asked_for(shared: Served) -> None:
    http = shared.http()
    path = f"{FILES}/{http.post(FILES, **form(PNG)).json()['id']}/content"
    head = http.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PNG)))
    assert head.headers["etag"] == f'"{hashlib.sha256(PNG).hexdigest()}"'
    part = http.get(path, headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")
    assert part.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert http.get(path, headers={"range": "bytes=9999-"}).status_code == 416
    fresh = http.get(path, headers={"range": "bytes=1-3", "if-range": '"another"'})
    assert (fresh.status_code, fresh.content) == (200, PNG)


# -- what is refused ---------------------------------------------------------------------------------------


def refused(answer: httpx.Response, status: int, param: str | None, says: str, code: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert re.search(says, error["message"])


TEXT = {"file": ("x.txt", b"x", "text/plain")}
PURPOSE = {"purpose": "user_data"}


@pytest.mark.parametrize(
    ("request_form", "param", "says"),
    [
        ({"data": PURPOSE, "files": {"other": TEXT["file"]}}, "file", "'file' is missing"),
        ({"data": PURPOSE, "files": {"file": (None, b"x")}}, "file", "'file' is missing"),
        ({"files": TEXT}, "purpose", "'purpose' is missing"),
        ({"files": {"purpose": TEXT["file"]}}, "file", "'file' is missing"),
        ({"files": TEXT, "data": {"purpose": ""}}, "purpose", "one word"),
        ({"files": TEXT, "data": {"purpose": "two words"}}, "purpose", "one word"),
        ({"files": TEXT, "data": {"purpose": "x" * 65}}, "purpose", "one word"),
        ({"files": TEXT, "data": {"purpose": "x" * (ROOM - 1000)}}, "purpose", "one word"),
        ({"files": [*TEXT.items(), *TEXT.items()], "data": PURPOSE}, None, "[Tt]oo many files"),
        ({"files": TEXT, "data": PURPOSE | {str(n): "x" for n in range(30)}}, None, "[Tt]oo many fields"),
        ({"files": TEXT, "data": PURPOSE | {"expires_after[seconds]": "3600"}}, "expires_after[anchor]", "created_at"),
        (
            {"files": TEXT, "data": PURPOSE | {"expires_after[anchor]": "created_at"}},
            "expires_after[seconds]",
            "3600 to 2592000",
        ),
        ({"data": PURPOSE}, None, "multipart/form-data"),
        ({"json": PURPOSE}, None, "multipart/form-data"),
        ({}, None, "multipart/form-data"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, None, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, None, "multipart"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "file", "missing"),
    ],
)
def test_a_form_that_cannot_be_taken_is_told_by_its_field(
    shared: Served, request_form: dict[str, Any], param: str | None, says: str
) -> None:
    refused(shared.http().post(FILES, **request_form), 400, param, says)


@pytest.mark.parametrize("seconds", ["3599", "2592001", "-1", "", "1e4", "3600.5", "٣٦٠٠", "9" * 5000])
def test_a_file_expires_within_openais_bounds(shared: Served, seconds: str) -> None:
    fields = PURPOSE | {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
    refused(shared.http().post(FILES, files=TEXT, data=fields), 400, "expires_after[seconds]", "3600 to 2592000")


@pytest.mark.parametrize(
    ("query", "param", "says"),
    [
        ("limit=0", "limit", "1 to 10000"),
        ("limit=10001", "limit", "1 to 10000"),
        ("limit=-1", "limit", "1 to 10000"),
        ("limit=ten", "limit", "1 to 10000"),
        ("limit=", "limit", "1 to 10000"),
        ("order=up", "order", "'asc' or 'desc'"),
    ],
)
def test_a_list_that_cannot_be_made_is_told_by_its_field(shared: Served, query: str, param: str, says: str) -> None:
    refused(shared.http().get(f"{FILES}?{query}"), 400, param, says)


def chunks(size: int, name: str = "file") -> Iterator[bytes]:
    """A form's body that does not say how long it is."""
    yield f'--b\r\ncontent-disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode()
    for start in range(0, size, 10_000):
        yield b"x" * min(10_000, size - start)
    yield b'\r\n--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'


IN_CHUNKS = {"content-type": "multipart/form-data; boundary=b"}


def test_a_file_has_at_most_so_many_bytes(serve: Serve) -> None:
    served = serve(file_max_bytes=50_000)
    http = served.http()
    assert http.post(FILES, **form(b"x" * 50_000)).status_code == 200
    assert http.post(FILES, content=chunks(50_000), headers=IN_CHUNKS).status_code == 200
    for size in (50_001, 50_000 + 2 * ROOM, 20_000_000):
        too_large = (413, "file", "larger than the 50,000 bytes", "request_too_large")
        refused(http.post(FILES, **form(b"x" * size)), *too_large)
        refused(http.post(FILES, content=chunks(size), headers=IN_CHUNKS), *too_large)
    assert len(served.blobs()) == 2


def test_the_sdk_is_told_that_a_file_is_too_large(shared: Served) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        shared.sdk().files.create(file=b"x" * 5_000_000, purpose="user_data")
    assert (told.value.status_code, told.value.code) == (413, "request_too_large")


def test_a_file_that_says_that_it_is_too_large_is_refused_before_it_comes(shared: Served) -> None:
    at = urlsplit(shared.url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        head = f"POST {FILES} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADAS}\r\ncontent-length: 1000000\r\n"
        peer.sendall(f"{head}content-type: multipart/form-data; boundary=b\r\n\r\n".encode())
        assert peer.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_file_that_does_not_say_so_is_refused_as_soon_as_it_is_too_large(shared: Served) -> None:
    at = urlsplit(shared.url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        head = f"POST {FILES} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADAS}\r\ntransfer-encoding: chunked\r\n"
        peer.sendall(f"{head}content-type: {IN_CHUNKS['content-type']}\r\n\r\n".encode())
        for chunk in [*chunks(100_000 + ROOM)][:-1]:
            peer.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        assert peer.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_caller_keeps_at_most_so_many_bytes(serve: Serve) -> None:
    served = serve(files_quota_bytes=1000, **KEYED)
    sdk = served.sdk()
    first = sdk.files.create(file=b"x" * 600, purpose="user_data")
    with pytest.raises(openai.PermissionDeniedError, match=r"600 bytes .* 1,000") as told:
        sdk.files.create(file=b"x" * 401, purpose="user_data")
    assert (told.value.code, told.value.param) == ("file_quota_exceeded", "file")
    served.sdk(BOBS).files.create(file=b"x" * 401, purpose="user_data")
    sdk.files.delete(first.id)
    sdk.files.create(file=b"x" * 1000, purpose="user_data")


def test_many_uploads_at_once_keep_no_more_than_the_quota(serve: Serve) -> None:
    served = serve(files_quota_bytes=1000)
    http = served.http()
    statuses: list[int] = []

    def upload() -> None:
        statuses.append(http.post(FILES, **form(b"x" * 300)).status_code)

    threads = [threading.Thread(target=upload) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(statuses)) == [200, 403]
    assert 1 <= statuses.count(200) == len(served.blobs()) <= 3


def test_a_caller_who_leaves_while_it_uploads_leaves_nothing(serve: Serve) -> None:
    served = serve()
    at = urlsplit(served.url)
    first, second, *_ = chunks(40_000)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        head = f"POST {FILES} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 40000\r\n"
        peer.sendall(f"{head}content-type: {IN_CHUNKS['content-type']}\r\n\r\n".encode())
        assert peer.recv(65536).startswith(b"HTTP/1.1 100 ")
        peer.sendall(first + second)
    http = served.http()
    assert http.post(FILES, **form()).status_code == 200
    assert len(http.get(FILES).json()["data"]) == len(served.blobs()) == 1


def test_a_disk_that_fails_is_not_the_callers_fault(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    file_id = served.http().post(FILES, **form()).json()["id"]
    shutil.rmtree(served.files_dir / "blobs")
    answer = served.http().post(FILES, **form())
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert str(served.files_dir) not in answer.text
    assert "the files cannot be reached" in caplog.text
    assert served.http().get(f"{FILES}/{file_id}/content").status_code == 404


def test_a_file_given_up_while_it_comes_is_told_so(loop_thread: LoopThread, nowhere: str, tmp_path: Path) -> None:
    now_s = time.time()

    def now() -> float:
        # Another process of the same store sweeps when nothing has come for more than an hour.
        nonlocal now_s
        if list(tmp_path.glob("blobs/*.part")):
            now_s += 3601
            other = FileRoot(tmp_path, quota_bytes=1, max_files=1)
            other.sweep(now_s)
            other.close()
        return now_s

    app = create_app(Config(upstream=f"{nowhere}/v1", files_dir=tmp_path), now=now)
    with serve_app(app, loop_thread) as url:
        refused(httpx.post(url + FILES, **form()), 400, "file", "stood still")
        assert httpx.get(url + FILES).json()["data"] == []
