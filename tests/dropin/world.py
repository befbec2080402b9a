"""What the tests of the drop-in need in a tree: the link named apk, and an apk that tells how it was called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.packages import File, Package
from tests.support.rootfs import install_drop_in
from tests.support.world import Guest, Result

LINK = "/usr/local/sbin/apk"
LIBEXEC = "/usr/libexec/apk-atomic"
FRONT = f"{LIBEXEC}/bin/apk"
GUARD = "/lib/apk/commit_hooks.d/apk-atomic"
BARE = "/sbin/apk"
HELLO = Package("hello", files={"usr/bin/hello": File(b"#!/bin/sh\necho hello\n", 0o755)})

# The rest of a script that has mounted another root at {root}.
PIVOT = """\
for each in dev run var/cache var/log; do mount --rbind /$each {root}/$each; done
mount -t proc proc {root}/proc
cd {root} && mkdir -p tmp/old && pivot_root . tmp/old && umount -l /tmp/old
exec "$@"
"""

# All of it in one go, to its stdout or to $PROBE; $STATUS is its exit status.
PROBE = r"""#!/bin/sh
[ -z "$PROBE" ] || exec >>"$PROBE"
echo "program=$0"
for word in "$@"; do echo "word=$word"; done
echo "cwd=$(pwd -P 2>&1)"
grep -E '^(Umask|SigIgn|SigBlk):' "/proc/$$/status"
for fd in 0 1 2 3 4 5 6 7 8 9; do [ ! -e "/proc/$$/fd/$fd" ] || echo "fd=$fd"; done
env | sort | sed 's/^/env=/'
for word in "$@"; do
	word=${word#*=}
	[ ! -f "$word" ] || echo "file=$word=$(cat "$word")"
	[ ! -d "$word" ] || echo "directory=$word=$(ls "$word")"
	[ ! -d "$word" ] || ! touch "$word/written" 2>/dev/null || { echo "writable=$word"; rm "$word/written"; }
done
exit "${STATUS:-0}"
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What the probe in apk's place told: lines `key=value`, in order."""

    lines: tuple[str, ...]

    def all(self, key: str) -> list[str]:
        return [line.partition("=")[2] for line in self.lines if line.startswith(f"{key}=")]

    def one(self, key: str) -> str:
        (value,) = self.all(key)
        return value


def told(result: Result) -> Told:
    """The probe's answer of a command that ended well."""
    assert result.status == 0, result
    return Told(tuple(result.stdout.splitlines()))


def link_apk(tree: Path) -> None:
    """`apk` is the front of apk-atomic wherever PATH has /usr/local/sbin first, as it has on Alpine."""
    install_drop_in(tree)
    (tree / "usr/local/sbin").mkdir()
    (tree / LINK.lstrip("/")).symlink_to(FRONT)


def probe_instead_of_apk(tree: Path) -> None:
    (tree / "sbin/apk").unlink()
    (tree / "sbin/apk").write_text(PROBE)
    (tree / "sbin/apk").chmod(0o755)


def ours(result: Result) -> list[str]:
    """The lines on stderr that are apk-atomic's."""
    return [line for line in result.stderr.splitlines() if line.startswith("apk-atomic: ")]


def make_pending(guest: Guest, argv: tuple[str, ...] = ("touch", "/etc/pending")) -> None:
    """A pending generation that some command made."""
    guest.run(["apk-atomic", "run", "--", *argv], check=True)


def is_pending(guest: Guest) -> bool:
    """Whether the running system knows of a generation that waits for the reboot."""
    return (Path(guest.root) / "run/apk-atomic/next").exists()
