"""What the stand-in of the Hub answers, path by path: the forms that `huggingface_hub` reads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs


if TYPE_CHECKING:
    from fake_hub import Handler


WRITER, READER = "hf_writer", "hf_reader"
LARGE = re.compile(r"\.(safetensors|bin)$")


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


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
    self.hub.make(repo_id, private=bool(private))
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
]
