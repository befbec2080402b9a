"""README.md does not lie: the lines of its tour are run, in order, and answer as it says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apk_atomic import config, config_schema, verbs
from apk_atomic.applets import APPLETS
from apk_atomic.atomic_options import split_atomic
from apk_atomic.commands import usage
from tests.support.binaries import add_binary
from tests.support.bootpackages import kernel_package
from tests.support.bootworld import install_system
from tests.support.packages import File, Package
from tests.support.world import Guest, Volume, make_volume

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT, INNER_PROMPT = "# ", "~ # "
OTHER_DEVICE = "/dev/vdb2"
ID = re.compile(r"\d{14}[a-z]{8}")
# What is not the same on two machines, or with two versions of apk.
VARIABLE = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d"), "DATE"),
    (re.compile(r"^OK: .*"), "OK"),
    (re.compile(r"\(\d+ ms\)"), "(TIME)"),
    (re.compile(r"^\s*\* "), ""),
    (re.compile(r"^/bin/sh: "), "sh: "),
    (re.compile(r" +"), " "),
)


@dataclass(slots=True)
class Shown:
    """A command of the tour; `typed` goes to its stdin, `says` is what README shows below it."""

    line: str
    typed: list[str] = field(default_factory=list)
    says: list[str] = field(default_factory=list)


def tour() -> Iterator[Shown]:
    for block in BLOCK.findall(README.read_text()):
        command: Shown | None = None
        for line in block.splitlines():
            if line.startswith(PROMPT):
                if command:
                    yield command
                command = Shown(line.removeprefix(PROMPT))
            else:
                assert command, f"a block starts with {line!r}, not with a command"
                inner = line.startswith(INNER_PROMPT)
                (command.typed if inner else command.says).append(line.removeprefix(INNER_PROMPT))
        if command:
            yield command


class Machine:
    """The machine of the tour."""

    def __init__(self, volume: Volume, other: Volume) -> None:
        self.volume, self.other = volume, other
        self.guest: Guest = volume.boot()
        self.names: dict[str, str] = {}
        self.status = 0

    def run(self, shown: Shown) -> list[str]:
        """The lines of its answer; a shell remembers `$?` for the next one."""
        if shown.line == "reboot":
            self.guest.reboot()
            return []
        program = f"(exit {self.status})\n{shown.line.replace(OTHER_DEVICE, self.other.device)} 2>&1"
        done = self.guest.run(["/bin/sh", "-c", program], input="".join(f"{line}\n" for line in shown.typed))
        self.status = done.status
        return done.stdout.splitlines()

    def same(self, shown: list[str], real: list[str]) -> bool:
        """Line by line; `…` stands for any number of lines. A name in README means the same one everywhere."""
        if not shown:
            return not real
        if shown[0] == "…":
            return any(self.same(shown[1:], real[at:]) for at in range(len(real) + 1))
        return bool(real) and self.same_line(shown[0], real[0]) and self.same(shown[1:], real[1:])

    def same_line(self, shown: str, real: str) -> bool:
        named, found = ID.findall(shown), ID.findall(real)
        if len(named) != len(found) or plain(shown) != plain(real):
            return False
        return all(self.names.setdefault(one, other) == other for one, other in zip(named, found, strict=True))


def plain(line: str) -> str:
    for pattern, word in VARIABLE:
        line = pattern.sub(word, line)
    return ID.sub("ID", line).rstrip()


# ---- what happens to the machine between the lines --------------------------------------------------------


def nginx(version: str) -> Package:
    text = f"#!/bin/sh\necho nginx version: nginx/{version.partition('-')[0]}\n"
    return Package("nginx", version, files={"usr/sbin/nginx": File(text.encode(), 0o755)}, depends=("pcre2",))


def packages() -> tuple[Package, ...]:
    broken = Package("broken", scripts={"post-install": "#!/bin/sh\nexit 1\n"})
    return nginx("1.26.2-r0"), Package("pcre2", "10.43-r0"), broken


SYSMUT = """\
#!/bin/sh
exec sysmut.sh "$(awk '$2 == "/" { print $1 }' /proc/mounts | tail -n 1)" "$@"
"""


def add_sysmut(tree: Path) -> None:
    """The wiki's script, in our own words, and what it needs."""
    add_binary(tree, Path(shutil.which("btrfs") or "btrfs"), "usr/bin/btrfs")
    shutil.copy(README.parent / "bench/sysmut", tree / "usr/sbin/sysmut.sh")
    wrapper = tree / "usr/sbin/sysmut"
    wrapper.write_text(SYSMUT)
    wrapper.chmod(0o755)


def new_versions_come_out(machine: Machine) -> None:
    machine.volume.repo.publish(nginx("1.28.0-r0"), kernel_package("6.12.2-r0"))


BEFORE: dict[str, Callable[[Machine], None]] = {
    'apk-atomic --atomic-message "before the holidays" upgrade': new_versions_come_out,
}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with make_volume(prepare=add_sysmut) as volume, make_volume() as other:
        install_system(volume, *packages())
        install_system(other, *packages())
        yield Machine(volume, other)


def test_tour(machine: Machine) -> None:
    commands = list(tour())
    assert set(BEFORE) < {shown.line for shown in commands}
    for shown in commands:
        if happens := BEFORE.get(shown.line):
            happens(machine)
        real = machine.run(shown)
        assert machine.same(shown.says, real), f"# {shown.line}\n" + "\n".join(real)


OURS = ("make ", "apk-atomic ")
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TYPED = ("status", "add", "upgrade", "rollback")
# Who runs what stands in the blocks for a shell, by the beginning of the line: those that set up a machine, the last of
# which would run this test, and a chapter that needs a machine of its own.
ELSEWHERE = {
    "make demo": ("tests/test_demo.py", '"-m", "tests.demo"'),
    "make test-boot": (".ci/run", "make test-boot"),
    "make test ": (".ci/run", "make test\n"),
    "make disk": ("tests/boot/test_tryout.py", '"## A machine to try it on\\n"'),
    "make machine": ("tests/boot/test_tryout.py", "make"),
    "apk-atomic init": ("tests/install/test_init.py", '"## Making a new system\\n"'),
    **{f"apk-atomic {verb}": ("tests/boot/test_tryout.py", "typed") for verb in TYPED},
    "apk-atomic adopt": ("tests/install/test_adopt.py", '"## Taking over an existing system\\n"'),
}


def test_commands_for_a_shell_are_run_elsewhere() -> None:
    lines = [line for line in "".join(SHELL.findall(README.read_text())).splitlines() if line.startswith(OURS)]
    for line in lines:
        assert line.startswith(tuple(ELSEWHERE)), line
    for start, (path, proof) in ELSEWHERE.items():
        assert any(line.startswith(start) for line in lines)
        assert proof in (README.parent / path).read_text()


def test_blocks_are_of_a_kind_that_is_run() -> None:
    """A block without a language holds no command."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"console", "sh", ""}
    assert not [line for kind, text in blocks for line in text.splitlines() if not kind and line.startswith(OURS)]


SPAN = re.compile(r"(?<!`)`(apk-atomic|make) ([^`]+)`")


def test_commands_in_the_text_exist() -> None:
    """Those in backquotes are understood: verb and options, or apk's applet; and `make` has the target."""
    spans = SPAN.findall(README.read_text())
    targets = re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    assert len(spans) > 10
    for program, rest in spans:
        words = rest.replace("\\|", "|").replace("…", "").split()
        if program == "make":
            assert words[0] in targets, rest
            continue
        line = split_atomic(words)[1]
        for word in line[0].split("|"):
            assert word in verbs.VERBS or word in APPLETS, rest
            flags = re.findall(r"--[a-z-]+", rest)
            plain = usage.VERBS[word].flags if word in verbs.VERBS else None
            assert plain is None or {f"--{flag}" for flag in plain} >= set(flags) - {usage.HELP}, rest


def test_settings_in_the_text_are_understood() -> None:
    found = re.findall(r"(?<!`)`(\w+) = ([^`]+)`", README.read_text())
    assert found
    for key, value in found:
        table = next(table for table, keys in config_schema.TABLES.items() if key in keys)
        assert config.load(f"[{table}]\n{key} = {value}".encode(), "F") != config.Config()


def first_column(heading: str) -> list[str]:
    """What stands in backquotes or as it is in the first cells of the table with this heading."""
    table = README.read_text().partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [row.replace("\\|", "/").split("|")[1].strip(" `") for row in table.splitlines()[2:]]


def test_every_verb_is_named() -> None:
    assert {line.split()[0] for line in first_column("verb")} == set(verbs.VERBS)


def test_what_it_leads_to_is_there() -> None:
    text = README.read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    headings = {title.lower().replace(" ", "-").replace("'", "") for title in titles}
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert name.removeprefix("#") in headings if name[0] == "#" else (README.parent / name).exists(), name
