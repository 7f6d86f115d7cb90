"""Routes of the fake Hub: the responses that `huggingface_hub` reads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from fake_hub import Handler


WRITER, READER = "hf_writer", "hf_reader"
LFS = re.compile(r"\.(safetensors|bin)$")


class ErrorResponse(Exception):
    """A response with an error status."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def digest(content: bytes, path: str) -> str:
    """The oid of a file: SHA-256 for LFS files, the git blob hash for others."""
    if LFS.search(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree_entry(path: str, content: bytes) -> dict[str, object]:
    """An entry of a tree listing."""
    oid = digest(content, path)
    lfs = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 130}} if LFS.search(path) else {}
    return {"type": "file", "path": path, "oid": oid[:40], "size": len(content), **lfs}


def create(self: Handler):
    request = json.loads(self.body)
    repo_id = f"{request['organization']}/{request['name']}"
    response = {"url": f"{self.hub.address}/{repo_id}", "name": repo_id}
    self.may_write()
    if repo_id in self.hub.repositories:
        return 409, {"error": "You already created this model repo", **response}, {}
    private = request.get("private") or request.get("visibility") == "private"
    self.hub.make(repo_id, private=bool(private))
    return 200, response, {}


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
    return 200, [tree_entry(*item) for item in repository.commits[oid].items()], {"X-Repo-Commit": oid}


def preupload(self: Handler, repo_id: str, revision: str):
    repository, oid = self.at(repo_id, revision)
    self.may_write()
    files = repository.commits[oid]
    return 200, {
        "files": [
            {
                "path": (path := request["path"]),
                "uploadMode": "lfs" if LFS.search(path) else "regular",
                "shouldIgnore": False,
                "oid": digest(files[path], path) if path in files else None,
            }
            for request in json.loads(self.body)["files"]
        ]
    }, {}  # fmt: skip


def lfs_batch(self: Handler, repo_id: str):
    self.may_write()
    objects = []
    for request in json.loads(self.body)["objects"]:
        where = {"upload": {"href": f"{self.hub.address}/lfs/{request['oid']}"}}
        where["verify"] = {"href": f"{self.hub.address}/lfs/verify"}
        objects.append({**request, **({} if request["oid"] in self.hub.lfs_objects else {"actions": where})})
    return 200, {"transfer": "basic", "objects": objects}, {}


def lfs_upload(self: Handler, oid: str):
    if hashlib.sha256(self.body).hexdigest() != oid:
        raise ErrorResponse(400, "The content does not match this hash")
    self.hub.lfs_objects[oid] = self.body
    return 200, b"", {}


def lfs_verify(self: Handler):
    request = json.loads(self.body)
    if len(self.hub.lfs_objects.get(request["oid"], b"")) != request["size"]:
        raise ErrorResponse(404, "Not uploaded")
    return 200, {}, {}


def commit(self: Handler, repo_id: str, revision: str):
    repository, head = self.at(repo_id, revision)
    self.may_write()
    files = dict(repository.commits[head])
    lines = [json.loads(line) for line in self.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, head):
        raise ErrorResponse(412, "A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in self.hub.lfs_objects:
                raise ErrorResponse(400, f"{value['path']}: the content was not uploaded")
            files[value["path"]] = self.hub.lfs_objects[value["oid"]]
        else:
            del files[value["path"]]
    pull = f"refs/pr/{len(repository.pulls) + 1}" if self.query.get("create_pr") else None
    oid = repository.commit(pull or revision, files, header["summary"])
    address = f"{self.hub.address}/{repo_id}"
    response = {"commitUrl": f"{address}/commit/{oid}", "commitOid": oid}
    if pull:
        response["pullRequestUrl"] = f"{address}/discussions/{len(repository.pulls)}"
    return 200, response, {}


def branch(self: Handler, repo_id: str, name: str):
    repository = self.repository(repo_id)
    self.may_write()
    if name in repository.branches:
        raise ErrorResponse(409, "Reference already exists")
    start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
    repository.branches[name] = self.at(repo_id, start)[1]
    return 200, {}, {}


def tag(self: Handler, repo_id: str, revision: str):
    repository, oid = self.at(repo_id, revision)
    self.may_write()
    name = json.loads(self.body)["tag"]
    if name in repository.tags:
        raise ErrorResponse(409, "Tag already exists")
    repository.tags[name] = oid
    return 200, {}, {}


def auth_check(self: Handler, repo_id: str):
    self.repository(repo_id)
    self.may_write()
    return 200, {}, {}


def resolve(self: Handler, repo_id: str, revision: str, path: str):
    repository, oid = self.at(repo_id, revision)
    content = repository.commits[oid].get(path)
    if content is None:
        error = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid, "X-Error-Message": "Entry not found"}
        return 404, {"error": "Entry not found"}, error
    headers = {"X-Repo-Commit": oid, "ETag": f'"{digest(content, path)}"', "Accept-Ranges": "bytes"}
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    if part is None:
        return 200, content, headers
    start, end = int(part.group(1)), int(part.group(2) or len(content) - 1)
    return 206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}


ID, API = r"([^/]+/[^/]+)", r"/api/models/([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("GET", API, info),
    ("GET", f"{API}/revision/([^/]+)", info),
    ("GET", f"{API}/refs", refs),
    ("GET", f"{API}/tree/([^/]+)(?:/.*)?", tree),
    ("POST", f"{API}/preupload/([^/]+)", preupload),
    ("POST", f"/{ID}.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/([^/]+)", lfs_upload),
    ("POST", "/lfs/verify", lfs_verify),
    ("POST", f"{API}/commit/([^/]+)", commit),
    ("POST", f"{API}/branch/([^/]+)", branch),
    ("POST", f"{API}/tag/([^/]+)", tag),
    ("GET", f"{API}/auth-check/write", auth_check),
    ("GET", f"/{ID}/resolve/([^/]+)/(.+)", resolve),
]
