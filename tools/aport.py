"""`python -m tools.aport DIRECTORY ["NAME <ADDRESS>"]`: what aports gets of this checkout, ready for `abuild -r`.

The sources in an archive, APKBUILD with the archive's checksum, and the install scripts beside it. The same sources
give the same bytes. Neither the checksum, of an archive that APKBUILD itself is in, nor a maintainer can stand in the
sources: who that is, only who submits it can say, and without one the package is an orphan to aports. It needs nothing
but Python, and git where the sources are a checkout.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ORPHAN = "# Maintainer:\n"
_MAINTAINER = re.compile(r"[^<>\"$`\\\s]([^<>\"$`\\\n]*[^<>\"$`\\\s])? <[^<>\"$`\\\s@]+@[^<>\"$`\\\s@]+>")
_PRIVATE = (".venv", ".git", "build", "__pycache__")


def make(sources: Path, place: Path, maintainer: str = "") -> None:
    """Write it all into `place`, which is emptied first."""
    recipe = _maintained((sources / "APKBUILD").read_text(), maintainer)
    name, version = (_value(recipe, key) for key in ("pkgname", "pkgver"))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    archive = f"{name}-{version}.tar.gz"
    data = _archive(sources, f"{name}-{version}")
    (place / archive).write_bytes(data)
    (place / "APKBUILD").write_text(f'{recipe}\nsha512sums="\n{hashlib.sha512(data).hexdigest()}  {archive}\n"\n')
    for script in sources.glob(f"{name}*.post-install"):
        shutil.copy(script, place)


def files(sources: Path) -> list[Path]:
    """What is, or is going to be, committed; all of an unpacked archive. Relative to `sources`, sorted."""
    if (sources / ".git").exists():
        command = ["git", "-C", str(sources), "ls-files", "-co", "--exclude-standard"]
        found = [Path(line) for line in subprocess.check_output(command, text=True).splitlines()]
    else:
        found = [path.relative_to(sources) for path in sources.rglob("*") if not set(_PRIVATE) & set(path.parts)]
    return sorted(path for path in found if (sources / path).is_file())


def _maintained(recipe: str, maintainer: str) -> str:
    """With the name in aports' own variable; as it is where there is none."""
    if not maintainer:
        return recipe
    if not _MAINTAINER.fullmatch(maintainer) or ORPHAN not in recipe:
        raise SystemExit(f"{maintainer!r} is no maintainer: NAME <ADDRESS> is")
    return recipe.replace(ORPHAN, f'maintainer="{maintainer}"\n', 1)


def _value(recipe: str, key: str) -> str:
    found = re.search(rf"^{key}=(\S+)$", recipe, re.MULTILINE)
    if found is None:
        raise SystemExit(f"APKBUILD has no {key}")
    return found[1]


def _archive(sources: Path, top: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as out:
        for path in files(sources):
            info = tarfile.TarInfo(f"{top}/{path}")
            data = (sources / path).read_bytes()
            info.size, info.mode = len(data), 0o755 if (sources / path).stat().st_mode & 0o100 else 0o644
            out.addfile(info, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


if __name__ == "__main__":
    make(Path.cwd(), Path(sys.argv[1]), *sys.argv[2:3])
