"""A fake Hugging Face Hub on localhost, in memory, for the requests of `huggingface_hub`; with faults on demand.

It has commits, branches, tags and pull requests, checks the hashes of uploads, and refuses a commit whose parent is
not the head of the branch.
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
from hub_routes import READER, WRITER, ErrorResponse, digest


@dataclass
class Fault:
    """A fault in the next `times` requests of a method to a path.

    `what` is an HTTP status; `"cut"` (the connection is closed before the request is read), `"cut in the middle"`
    (half of the response), `"corrupt"` (the last byte of the response is flipped), `"no answer"` (the request is
    carried out, but not answered), or a function that is called before the request is handled.
    """

    method: str
    path: str
    what: int | str | Callable[[], None]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """Commits by hash, each a dict of files by path; branches, tags and pull requests by name."""

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
        """Commits `files` as the whole content of a branch or pull request."""
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
    """State of the server; tests read and change `repositories` and `faults`.

    Args:
        address: URL of the server.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}  # uploads by SHA-256
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
        """Number of requests of a method to paths that match a pattern."""
        return sum(made == method and bool(re.search(path, where)) for made, where in self.requests)

    def fault(self, method: str, path: str) -> Fault | None:
        """Records a request; returns the fault it meets, if any."""
        with self.lock:
            self.requests.append((method, path))
            for found in self.faults:
                if found.times > 0 and found.method == method and re.search(found.path, path):
                    found.times -= 1
                    return found
        return None


class HubServer(ThreadingHTTPServer):
    """Serves `hub` until the process ends; connections survive the replacement of `hub`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.hub = FakeHub(self.address)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """Handles one connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Silent: tests look at `requests`."""

    def handle_any(self) -> None:
        """Injects a fault if there is one, finds the route and responds."""
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
            return self.respond(what, {"error": f"injected {what}"}, fault.headers)
        try:
            for method, pattern, action in (*hub_routes.ROUTES, *fake_xet.ROUTES):
                match = re.fullmatch(pattern, url.path)
                if match and method in (self.command, {"HEAD": "GET"}.get(self.command)):
                    with self.hub.lock:
                        status, content, headers = action(self, *map(unquote, match.groups()))
                    break
            else:
                raise ErrorResponse(404, f"{self.command} {url.path} does not exist")
        except ErrorResponse as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            status, content = error.status, {"error": str(error)}
        if what == "no answer":
            return self.hang_up()
        return self.respond(status, content, headers, what)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_body(self) -> bytes:
        """The body of the request, plain or chunked."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def hang_up(self) -> None:
        """Closes the connection without a response."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def respond(self, status: int, content: object, headers: dict[str, str], what: object = None) -> None:
        """Sends bytes, or anything else as JSON."""
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

    # Helpers of the routes.

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self) -> None:
        if self.token() not in (WRITER, READER):
            raise ErrorResponse(401, "Invalid username or password.")
        if self.token() == READER:
            raise ErrorResponse(403, "You must use a write token to upload to a repository.")

    def repository(self, repo_id: str) -> Repository:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and self.token() not in (WRITER, READER)):
            raise ErrorResponse(404 if self.token() else 401, "Repository not found", "RepoNotFound")
        return found

    def at(self, repo_id: str, revision: str) -> tuple[Repository, str]:
        repository = self.repository(repo_id)
        oid = repository.find(revision)
        if oid is None:
            raise ErrorResponse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, oid
