"""A repository as a disk: a tar archive without a file system, which a guest unpacks over its own repository."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from tests.support.isolation import session_key
from tests.support.packages import Package, Repository

# The guest's repository is /var/cache/repo, in commons: so it can be changed while the system is sealed.
FETCH = "tar -x -f /dev/vdb -C /var/cache && sync"


def make_mirror(image: Path, *packages: Package) -> None:
    """Write the disk `image` with a signed repository of `packages`; a guest gets it by running FETCH."""
    with tempfile.TemporaryDirectory(prefix="mirror-") as place:
        repository = Repository(Path(place, "repo"), key=session_key())
        repository.publish(*packages)
        with tarfile.open(image, "w") as archive:
            archive.add(repository.path, "repo")
