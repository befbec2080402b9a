"""RSA keys that sign apk packages and indexes, made and used by openssl.

Knows nothing of apk-atomic; nothing here is made durable.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An RSA key to sign with; `name` is the file name of its public half in etc/apk/keys."""

    private: str
    public: str
    name: str

    def sign(self, payload: bytes) -> bytes:
        """The PKCS #1 v1.5 signature over the SHA1 of `payload`, the kind that both apks accept."""
        argv = ["openssl", "dgst", "-sha1", "-sign", self.private]
        return subprocess.run(argv, input=payload, stdout=subprocess.PIPE, check=True).stdout

    def trust(self, root: str | os.PathLike[str]) -> None:
        """Let apk in `root` accept what this key signed."""
        keys = os.path.join(root, "etc/apk/keys")
        os.makedirs(keys, exist_ok=True)
        with open(self.public, "rb") as source, open(os.path.join(keys, self.name), "wb") as target:
            target.write(source.read())


def make_key_pair(directory: str | os.PathLike[str], name: str = "test.rsa.pub", bits: int = 2048) -> KeyPair:
    """Make a fresh RSA key pair in `directory` (needs openssl)."""
    pair = KeyPair(os.path.join(directory, "test.rsa"), os.path.join(directory, name), name)
    for argv in (
        ["openssl", "genrsa", "-out", pair.private, str(bits)],
        ["openssl", "rsa", "-in", pair.private, "-pubout", "-out", pair.public],
    ):
        subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return pair
