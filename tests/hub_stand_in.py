"""A small Hugging Face Hub on loopback: what the client asks of the real one, kept in memory, with faults on demand.

Written from the requests that `huggingface_hub` makes. It keeps commits, branches, tags and pull requests, checks the
hashes of what is uploaded, and refuses a commit onto a head that has moved.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import xet_stand_in


WRITER, READER = "hf_writer", "hf_reader"
LARGE = re.compile(r"\.(safetensors|bin)$")


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
        oid = hashlib.sha1(f"{len(self.commits)} {message} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.messages[oid] = files, message
        (self.pulls if branch.startswith("refs/pr/") else self.branches)[branch] = oid
        return oid

    def add(self, path: str, content: bytes, branch: str = "main") -> str:
        """Someone else's commit of one file."""
        return self.commit(branch, {**self.commits[self.branches[branch]], path: content}, f"Add {path}")

    def head(self, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits[self.branches[branch]]


class HubStandIn:
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

    def add(self, repo_id: str, files: dict[str, bytes]) -> Repository:
        """A repository with one commit of these files."""
        repository = self.repositories[repo_id] = Repository()
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
        self.hub = HubStandIn(self.address)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing: the tests look at `requests`."""

    def handle_any(self) -> None:
        """Meets the fault, if there is one; finds what the path asks for and answers."""
        self.hub: HubStandIn = self.server.hub  # type: ignore[attr-defined]
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
            for method, pattern, action in ROUTES:
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


def digest(content: bytes, path: str) -> str:
    """What the Hub calls a file's content: SHA-256 of a large one, git's hash of a small one."""
    if LARGE.search(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def described(path: str, content: bytes) -> dict[str, object]:
    """An entry of a tree."""
    oid = digest(content, path)
    lfs = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 130}} if LARGE.search(path) else {}
    return {"type": "file", "path": path, "oid": oid[:40], "size": len(content), **lfs}


def whoami(self: Handler):
    if not self.token():
        raise Refused(401, "Invalid credentials")
    return 200, {"type": "user", "name": "writer", "orgs": [{"name": "org"}]}, {}


def create(self: Handler):
    asked = json.loads(self.body)
    repo_id = f"{asked['organization']}/{asked['name']}"
    answer = {"url": f"{self.hub.address}/{repo_id}", "name": repo_id}
    self.may_write()
    if repo_id in self.hub.repositories:
        return 409, {"error": "You already created this model repo", **answer}, {}
    private = asked.get("private") or asked.get("visibility") == "private"
    self.hub.repositories[repo_id] = Repository(private=bool(private))
    return 200, answer, {}


def validate(self: Handler):
    content = json.loads(self.body)["content"]
    errors = [] if content.startswith("---\n") or "---" not in content[:4] else [{"message": "no metadata"}]
    return 200, {"errors": errors, "warnings": []}, {}


def info(self: Handler, repo_id: str, revision: str = "main"):
    repository, oid = self.at(repo_id, revision)
    files = repository.commits[oid]
    card = files.get("README.md", b"").decode()
    task = re.search(r"^pipeline_tag: (.*)$", card, re.MULTILINE)
    return 200, {
        **{"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": oid, "private": repository.private, "tags": []},
        **{"siblings": [{"rfilename": path} for path in files], "pipeline_tag": task.group(1) if task else None},
    }, {}  # fmt: skip


def refs(self: Handler, repo_id: str):
    repository = self.repository(repo_id)
    kinds = {"branches": repository.branches, "tags": repository.tags, "pullRequests": repository.pulls}
    listed = {
        kind: [{"name": name, "ref": name, "targetCommit": oid} for name, oid in found.items()]
        for kind, found in kinds.items()
    }
    return 200, {**listed, "converts": []}, {}


def tree(self: Handler, repo_id: str, revision: str):
    repository, oid = self.at(repo_id, revision)
    return 200, [described(*item) for item in repository.commits[oid].items()], {"X-Repo-Commit": oid}


def paths_info(self: Handler, repo_id: str, revision: str):
    repository, oid = self.at(repo_id, revision)
    asked = json.loads(self.body) if self.body.startswith(b"{") else parse_qs(self.body.decode())
    files = repository.commits[oid]
    return 200, [described(path, files[path]) for path in asked["paths"] if path in files], {}


def preupload(self: Handler, repo_id: str, revision: str):
    repository, oid = self.at(repo_id, revision)
    self.may_write()
    files = repository.commits[oid]
    return 200, {
        "files": [
            {
                "path": (path := asked["path"]),
                "uploadMode": "lfs" if LARGE.search(path) else "regular",
                "shouldIgnore": False,
                "oid": digest(files[path], path) if path in files else None,
            }
            for asked in json.loads(self.body)["files"]
        ]
    }, {}  # fmt: skip


def lfs_batch(self: Handler, repo_id: str):
    self.may_write()
    objects = []
    for asked in json.loads(self.body)["objects"]:
        where = {"upload": {"href": f"{self.hub.address}/lfs/{asked['oid']}"}}
        where["verify"] = {"href": f"{self.hub.address}/lfs/verify"}
        objects.append({**asked, **({} if asked["oid"] in self.hub.large else {"actions": where})})
    return 200, {"transfer": "basic", "objects": objects}, {}


def lfs_upload(self: Handler, oid: str):
    if hashlib.sha256(self.body).hexdigest() != oid:
        raise Refused(400, "The content does not have this hash")
    self.hub.large[oid] = self.body
    return 200, b"", {}


def lfs_verify(self: Handler):
    asked = json.loads(self.body)
    if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, "Not uploaded")
    return 200, {}, {}


def commit(self: Handler, repo_id: str, revision: str):
    repository, head = self.at(repo_id, revision)
    self.may_write()
    files = dict(repository.commits[head])
    lines = [json.loads(line) for line in self.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, head):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in self.hub.large:
                raise Refused(400, f"{value['path']}: its content was not uploaded")
            files[value["path"]] = self.hub.large[value["oid"]]
        else:
            del files[value["path"]]
    pull = f"refs/pr/{len(repository.pulls) + 1}" if self.query.get("create_pr") else None
    oid = repository.commit(pull or revision, files, header["summary"])
    address = f"{self.hub.address}/{repo_id}"
    answer = {"commitUrl": f"{address}/commit/{oid}", "commitOid": oid}
    return 200, answer | ({"pullRequestUrl": f"{address}/discussions/{len(repository.pulls)}"} if pull else {}), {}


def branch(self: Handler, repo_id: str, name: str):
    repository = self.repository(repo_id)
    self.may_write()
    if name in repository.branches:
        raise Refused(409, "Reference already exists")
    start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
    repository.branches[name] = self.at(repo_id, start)[1]
    return 200, {}, {}


def tag(self: Handler, repo_id: str, revision: str):
    repository, oid = self.at(repo_id, revision)
    self.may_write()
    name = json.loads(self.body)["tag"]
    if name in repository.tags:
        raise Refused(409, "Tag already exists")
    repository.tags[name] = oid
    return 200, {}, {}


def resolve(self: Handler, repo_id: str, revision: str, path: str):
    repository, oid = self.at(repo_id, revision)
    content = repository.commits[oid].get(path)
    if content is None:
        answer = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid, "X-Error-Message": "Entry not found"}
        return 404, {"error": "Entry not found"}, answer
    headers = {"X-Repo-Commit": oid, "ETag": f'"{digest(content, path)}"', "Accept-Ranges": "bytes"}
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    if part is None:
        return 200, content, headers
    start, end = int(part.group(1)), int(part.group(2) or len(content) - 1)
    return 206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}


ID, API = r"([^/]+/[^/]+)", r"/api/models/([^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("GET", API, info),
    ("GET", f"{API}/revision/([^/]+)", info),
    ("GET", f"{API}/refs", refs),
    ("GET", f"{API}/tree/([^/]+)(?:/.*)?", tree),
    ("POST", f"{API}/paths-info/([^/]+)", paths_info),
    ("POST", f"{API}/preupload/([^/]+)", preupload),
    ("POST", f"/{ID}.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/([^/]+)", lfs_upload),
    ("POST", "/lfs/verify", lfs_verify),
    ("POST", f"{API}/commit/([^/]+)", commit),
    ("POST", f"{API}/branch/([^/]+)", branch),
    ("POST", f"{API}/tag/([^/]+)", tag),
    ("GET", f"/{ID}/resolve/([^/]+)/(.+)", resolve),
    *xet_stand_in.ROUTES,
]
