"""Xet uploads for the fake Hub: chunks arrive in xorbs, and a shard says which chunks make a file.

The formats are those of the public xet protocol. Chunks must not be compressed: `HF_XET_XORB_COMPRESSION_POLICY=none`.
"""

import hashlib
import struct
from typing import Any


# Shared by all servers of a process: the client remembers what it sent, and does not send it twice.
XORBS: dict[str, list[bytes]] = {}
ENTRY = 48
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30


def chunks_of(xorb: bytes) -> list[bytes]:
    """The chunks of a xorb, without its footer."""
    chunks, at = [], 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        stored, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        if scheme:
            raise ValueError("A chunk is compressed. Set HF_XET_XORB_COMPRESSION_POLICY=none.")
        chunks.append(xorb[at + 8 : at + 8 + stored])
        at += 8 + stored
    return chunks


def hex_name(digest: bytes) -> str:
    """A xet hash in hexadecimal: four 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def files_of(shard: bytes) -> list[bytes]:
    """The files that a shard describes, assembled from the uploaded xorbs."""
    files, at = [], ENTRY  # after the header
    while shard[at : at + 32] != b"\xff" * 32:
        flags, number = struct.unpack_from("<II", shard, at + 32)
        at += ENTRY
        parts = []
        for _ in range(number):
            xorb, (_, _, start, end) = hex_name(shard[at : at + 32]), struct.unpack_from("<4I", shard, at + 32)
            parts += XORBS[xorb][start:end]
            at += ENTRY
        at += ENTRY * (number if flags & HAS_VERIFICATION else 0) + ENTRY * bool(flags & HAS_METADATA)
        files.append(b"".join(parts))
    return files


def token(self: Any, repo_id: str, revision: str) -> tuple[int, object, dict[str, str]]:
    """The server to upload to."""
    self.may_write()
    self.at(repo_id, revision)
    response = {"casUrl": self.hub.address, "accessToken": "xet", "exp": 2**31}
    headers = {"X-Xet-Cas-Url": self.hub.address, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(2**31)}
    return 200, response, headers


def upload_xorb(self: Any, name: str) -> tuple[int, object, dict[str, str]]:
    """Stores the chunks of a xorb."""
    XORBS[name] = chunks_of(self.body)
    return 200, {"was_inserted": True}, {}


def upload_shard(self: Any) -> tuple[int, object, dict[str, str]]:
    """Stores the files of a shard by their SHA-256."""
    for content in files_of(self.body):
        self.hub.lfs_objects[hashlib.sha256(content).hexdigest()] = content
    return 200, {"result": 1}, {}


ROUTES = [
    ("GET", r"/api/models/([^/]+/[^/]+)/xet-write-token/([^/]+)", token),
    ("POST", r"/v1/xorbs/default/([0-9a-f]+)", upload_xorb),
    ("POST", r"/v1/shards", upload_shard),
]
