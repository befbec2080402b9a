"""A machine that is left to itself: booted, with a repository that goes on, and `[auto]` as a test wants it.

    house.auto()                       # what crond's job does; judged as every command is
    house.release("hello", "2.0-r0")   # the repository has something new
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.adversity.trial import Trial
from tests.support.packages import File, Package, Repository
from tests.support.world import Guest, Result, Volume, make_volume

AT_ONCE = {"delay_minutes": 0, "every_hours": 0, "min_free": "16M", "io": "normal", "nice": 0}
PERIODIC = "/etc/periodic/daily/apk-atomic"
QUARTERLY = "/etc/periodic/15min/apk-atomic-reboot"
HOOKS = Path(__file__).parents[2] / "hooks"
REBOOTED = "/var/log/rebooted"
CONFIG = "etc/apk-atomic/apk-atomic.toml"


def toml(settings: Mapping[str, object]) -> str:
    lines = (f"{key} = {json.dumps(value)}" for key, value in {**AT_ONCE, **settings}.items())
    return "[auto]\n" + "\n".join(lines) + "\n"


def package(name: str, version: str = "1.0-r0", **more: Any) -> Package:
    """One with a file that says which version it is."""
    files = {f"usr/share/{name}": File(f"{name} {version}\n".encode())} | more.pop("files", {})
    return Package(name, version, files=files, **more)


def furnish(tree: Path, settings: Mapping[str, object]) -> None:
    """The configuration, the periodic jobs, and a reboot that only says so: the machine is the tests' own."""
    (tree / CONFIG).write_text(toml(settings))
    for name, job in (("daily/apk-atomic", "apk-atomic"), ("15min/apk-atomic-reboot", "apk-atomic-reboot")):
        path = tree / "etc/periodic" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((HOOKS / f"{job}.periodic").read_bytes())
        path.chmod(0o755)
    reboot = tree / "sbin/reboot"
    reboot.unlink()
    reboot.write_text(f"#!/bin/sh\nreadlink /proc/self/fd/0 >>{REBOOTED}\n")
    reboot.chmod(0o755)


class House:
    """`trial` judges; `settings` are those that differ from AT_ONCE."""

    def __init__(self, volume: Volume, repo: Repository | None = None) -> None:
        self.volume = volume
        self.repo = repo or volume.repo
        self.trial = Trial(volume)

    @property
    def guest(self) -> Guest:
        return self.trial.guest

    def auto(self, *words: str, **how: Any) -> Result:
        return self.trial.run("apk-atomic", "auto", *words, **how)

    def done(self, *words: str, **how: Any) -> dict[str, Any]:
        """The document of a run that ended well."""
        result = self.auto("--json", *words, **how)
        assert (result.status, result.stderr) == (0, ""), result
        answer = json.loads(result.stdout)
        assert isinstance(answer, dict)
        return answer

    def committed(self, *words: str) -> str:
        """The run makes a generation; its ID."""
        self.trial.accept()
        answer = self.done(*words)
        assert answer["outcome"] == "committed", answer
        assert self.volume.slots()[0] == answer["generation"]
        self.trial.accept()
        return str(answer["generation"])

    def nothing(self, *words: str, outcome: str = "nothing") -> dict[str, Any]:
        """The run changes nothing, and says nothing."""
        self.trial.accept()
        answer = self.done(*words)
        self.trial.check_same()
        assert answer["outcome"] == outcome, answer
        return answer

    def release(self, name: str, version: str, **more: Any) -> None:
        self.repo.publish(package(name, version, **more))

    def content(self, name: str, slot: int = 0) -> str:
        """What the package's file says in a slot."""
        return (self.volume.tree(slot) / "usr/share" / name).read_text().split()[1]

    def state(self, name: str) -> dict[str, Any]:
        found = json.loads((self.volume.top / "state" / name).read_text())
        assert isinstance(found, dict)
        return found

    def record(self) -> dict[str, Any]:
        found = json.loads((self.volume.top / "snapshots" / self.volume.slots()[0] / "generation.json").read_text())
        assert isinstance(found, dict)
        return found

    def configure(self, **settings: object) -> None:
        """Another configuration of the running system, until the reboot."""
        source = Path(self.guest.root, "tmp/auto.toml")
        source.write_text(toml(settings))
        self.guest.run(["mount", "--bind", "/tmp/auto.toml", f"/{CONFIG}"], check=True)
        self.trial.accept_mounts()

    def own_dev(self) -> None:
        """What is made in the guest's /dev must not be seen by this machine."""
        devices = ("null", "zero", "full", "random", "urandom", "tty", os.path.basename(self.volume.device))
        script = ["mkdir -p /run/dev; mount -t tmpfs -o mode=755 tmpfs /run/dev; mkdir /run/dev/pts /run/dev/shm"]
        for name in devices:
            status = os.stat(f"/dev/{name}")
            kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
            numbers = f"{os.major(status.st_rdev)} {os.minor(status.st_rdev)}"
            script.append(f"mknod -m 666 /run/dev/{name} {kind} {numbers}")
        script.append("mount --bind /dev/pts /run/dev/pts; mount --move /run/dev /dev")
        self.guest.run(["sh", "-ec", "\n".join(script)], check=True)
        self.trial.accept_mounts()


@contextmanager
def make_house(
    repo: Repository | None = None, url: str = "", prepare: Callable[[Path], None] = lambda _: None, **settings: object
) -> Iterator[House]:
    """A fresh machine with `hello` 1.0 installed and booted, and nothing pending.

    `repo` is behind `url`, if the machine's packages come from elsewhere. `prepare` may change the first tree.
    """

    def furnished(tree: Path) -> None:
        furnish(tree, settings)
        if url:
            (tree / "etc/apk/repositories").write_text(f"{url}\n")
        prepare(tree)

    with make_volume(prepare=furnished) as volume:
        house = House(volume, repo)
        house.release("hello", "1.0-r0")
        house.guest.run(["apk-atomic", "add", "hello"], check=True)
        house.trial.reboot()
        yield house
