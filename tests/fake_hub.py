"""A small Hugging Face Hub on loopback: what the client asks of the real one, kept in memory, with faults on demand.

Written from the requests that `huggingface_hub` makes. It keeps commits, branches, tags and pull requests, checks the
hashes of what is uploaded, and refuses a commit onto a head that has moved.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import fake_xet
import hub_routes
from hub_routes import READER, WRITER, Refused, digest


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method to a path.

    `what` is a status; `"cut"` (no answer, the body is not read to its end), `"cut in the middle"` (half of the
    answer), `"corrupt"` (one byte of the answer is another one), `"no answer"` (the request is obeyed, nobody told),
    or a function that does something to the repository before the request is obeyed.
    """

    method: str
    path: str
    what: int | str | Callable[[], None]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """Commits by their hash, each the files by path; and the names of some commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit(
            "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
        )

    def find(self, revision: str) -> str | None:
        """The commit of a branch, tag, pull request or hash."""
        named = {**self.tags, **self.pulls, **self.branches}
        return named.get(revision, revision if revision in self.commits else None)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Makes `files` the whole content of a branch, or of a pull request."""
        contents = sorted((path, digest(content, path)) for path, content in files.items())
        oid = hashlib.sha1(f"{list(self.commits)} {message} {contents}".encode()).hexdigest()
        self.commits[oid], self.messages[oid] = files, message
        (self.pulls if branch.startswith("refs/pr/") else self.branches)[branch] = oid
        return oid

    def add(self, path: str, content: bytes, branch: str = "main") -> str:
        """Someone else's commit of one file."""
        return self.commit(branch, {**self.commits[self.branches[branch]], path: content}, f"Add {path}")

    def head(self, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits[self.branches[branch]]


class FakeHub:
    """What the Hub holds. `repositories` and `faults` are for tests to read and to change.

    Args:
        address: of the server.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # what was uploaded, by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()

    def make(self, repo_id: str, *, private: bool = False) -> Repository:
        """An empty repository."""
        self.repositories[repo_id] = Repository(private=private)
        return self.repositories[repo_id]

    def add(self, repo_id: str, files: dict[str, bytes]) -> Repository:
        """A repository with one commit of these files."""
        repository = self.make(repo_id)
        repository.commit("main", {**repository.head(), **files}, "files")
        return repository

    def counted(self, method: str, path: str) -> int:
        """Requests of a method to paths that match."""
        return sum(made == method and bool(re.search(path, where)) for made, where in self.requests)

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, counted."""
        with self.lock:
            self.requests.append((method, path))
            for found in self.faults:
                if found.times > 0 and found.method == method and re.search(found.path, path):
                    found.times -= 1
                    return found
        return None


class HubServer(ThreadingHTTPServer):
    """Serves `hub` on a port of its own until the process ends; connections live on when `hub` is replaced."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.hub = FakeHub(self.address)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing: the tests look at `requests`."""

    def handle_any(self) -> None:
        """Meets the fault, if there is one; finds what the path asks for and answers."""
        self.hub: FakeHub = self.server.hub  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        fault = self.hub.fault(self.command, self.path)
        what = fault.what if fault else None
        if what == "cut":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0)) // 2))
            return self.hang_up()
        self.body = self.read_body()
        if callable(what):
            what()
        if isinstance(what, int):
            return self.answer(what, {"error": f"injected {what}"}, fault.headers)
        try:
            for method, pattern, action in (*hub_routes.ROUTES, *fake_xet.ROUTES):
                match = re.fullmatch(pattern, url.path)
                if match and method in (self.command, {"HEAD": "GET"}.get(self.command)):
                    with self.hub.lock:
                        status, content, headers = action(self, *map(unquote, match.groups()))
                    break
            else:
                raise Refused(404, f"{self.command} {url.path} is not there")
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            status, content = refused.status, {"error": str(refused)}
        if what == "no answer":
            return self.hang_up()
        return self.answer(status, content, headers, what)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self) -> bytes:
        """The request's body, whole or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def hang_up(self) -> None:
        """Closes the connection without a word."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status: int, content: object, headers: dict[str, str], what: object = None) -> None:
        """Sends JSON, or bytes as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if what == "corrupt" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if what == "cut in the middle" else body)
        if what == "cut in the middle":
            self.wfile.flush()
            self.hang_up()

    # What the routes need.

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self) -> None:
        if self.token() not in (WRITER, READER):
            raise Refused(401, "Invalid username or password.")
        if self.token() == READER:
            raise Refused(403, "You must use a write token to upload to a repository.")

    def repository(self, repo_id: str) -> Repository:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and self.token() not in (WRITER, READER)):
            raise Refused(404 if self.token() else 401, "Repository not found", "RepoNotFound")
        return found

    def at(self, repo_id: str, revision: str) -> tuple[Repository, str]:
        repository = self.repository(repo_id)
        oid = repository.find(revision)
        if oid is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, oid
