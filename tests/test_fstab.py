"""fstab: parsing anything, whose text wins, and which mounts a change gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic.errors import Refused
from apk_atomic.fstab import (
    PLACEHOLDER,
    BaseFstab,
    Entry,
    Mount,
    Rendered,
    Source,
    carry_forward,
    decide,
    decode,
    digest,
    encode,
    garbage,
    mounts_for_change,
    parse,
    render,
    root_entry,
)
from tests.support.properties import cheap

OLD, NEW, NEWER = "/snapshots/20260101000000aaaaaaaa", "/snapshots/20260202000000bbbbbbbb", "/snapshots/hand-made"

WIKI = """\
# <fs>  <mountpoint>  <type>  <opts>  <dump/pass>
LABEL=ROOT / btrfs subvol=CURRENT_SNAPSHOTS_PATH/@,ro,noatime 0 0
LABEL=ROOT\t/home\tbtrfs\tsubvol=/commons/@home,noatime\t0 0
LABEL=ROOT /var/cache btrfs subvol=/commons/@var@cache,noatime 0 0
LABEL=ROOT /var/log btrfs subvol=/commons/@var@log,noatime 0 0

UUID=1234-ABCD /boot/efi vfat noauto,umask=0077 0 2
LABEL=SWAP none swap defaults 0 0
tmpfs /tmp tmpfs nosuid,nodev 0 0
"""

WORDS = st.text(st.characters(exclude_characters="\0 \t\r\n#\\", exclude_categories=["Cs"]), min_size=1, max_size=12)
FSTABS = st.lists(
    st.sampled_from(WIKI.splitlines()) | WORDS.map(lambda word: f"# {word}") | st.text(max_size=20), max_size=8
).map("\n".join)


# Parsing


def test_the_wikis_template() -> None:
    entries = parse(render(WIKI, NEW))
    root = root_entry(entries)
    assert root == Entry("LABEL=ROOT", "/", "btrfs", (f"subvol={NEW}/@", "ro", "noatime"))
    assert [each.mountpoint for each in entries] == [
        *("/", "/home", "/var/cache", "/var/log", "/boot/efi", "none", "/tmp")
    ]
    assert entries[4].passno == 2
    assert garbage(WIKI) == ()


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("a /b c", Entry("a", "/b", "c", ("defaults",), 0, 0)),
        ("a /b c d,e 1", Entry("a", "/b", "c", ("d", "e"), 1, 0)),
        (" \ta  /b\t\tc d 1 2 # more", Entry("a", "/b", "c", ("d",), 1, 2)),
        ("a /b c d x " + "9" * 5000 + "\r", Entry("a", "/b", "c", ("d",), 0, 0)),
        ("a /my\\040music\\011\\134 c d", Entry("a", "/my music\t\\", "c", ("d",))),
        ("a /b\\0401 c d", Entry("a", "/b 1", "c", ("d",))),
        ("a /\\303\\251\\377 c d", Entry("a", "/é\udcff", "c", ("d",))),
        ("a /\\400\\9\\04 c d\\", Entry("a", "/\\400\\9\\04", "c", ("d\\",))),
    ],
)
def test_lines_that_are_entries(line: str, entry: Entry) -> None:
    assert parse(line) == (entry,)
    assert garbage(line) == ()


@pytest.mark.parametrize("line", ["LABEL=ROOT", "a /b", "a /b\\000 c d", "\x00 a b c"])
def test_lines_that_are_none_are_reported(line: str) -> None:
    assert parse(f"{line}\na /b c\n") == (Entry("a", "/b", "c"),)
    assert garbage(f"\n# comment\n{line}\na /b c\n") == (f"line 3: {line}",)


@cheap(150)
@given(st.binary(max_size=200) | FSTABS.map(encode))
def test_any_bytes_are_read_and_given_back(raw: bytes) -> None:
    text = decode(raw)
    assert encode(text) == raw
    assert len(digest(text)) == 64
    entries = parse(text)
    assert len(entries) + len(garbage(text)) <= text.count("\n") + 1
    assert root_entry(entries) is None or root_entry(entries) in entries


@cheap()
@given(st.lists(st.binary(min_size=1, max_size=6).filter(lambda raw: b"\0" not in raw), min_size=3, max_size=3))
def test_whatever_is_escaped_is_read_back(fields: list[bytes]) -> None:
    line = " ".join("".join(f"\\{byte:03o}" for byte in raw) for raw in fields)
    (entry,) = parse(line)
    assert (entry.device, entry.mountpoint, entry.fstype) == tuple(decode(raw) for raw in fields)


def test_root_is_one_or_none() -> None:
    root, home = Entry("a", "/", "btrfs"), Entry("a", "/home", "btrfs")
    assert root_entry([home, root]) is root
    assert root_entry([home]) is None
    assert root_entry([root, root]) is None


def test_the_last_value_of_an_option_counts() -> None:
    entry = Entry("a", "/", "btrfs", ("subvol=x", "ro", "subvolid=5", "subvol=/y=z"))
    assert entry.value("subvol") == "/y=z"
    assert entry.value("subvolid") == "5"
    assert entry.value("ro") is None


# Rendering


@cheap()
@given(st.text())
def test_text_without_the_placeholder_is_left_alone(text: str) -> None:
    text = text.replace(PLACEHOLDER, "")
    assert render(text, NEW) == text
    assert carry_forward(text.replace("snapshots", ""), OLD, NEW) == text.replace("snapshots", "")


@cheap()
@given(FSTABS)
def test_rendered_text_carried_forward_is_the_template_rendered_anew(template: str) -> None:
    assert carry_forward(render(template, OLD), OLD, NEW) == render(template, NEW)
    assert render(render(template, OLD), NEW) == render(template, OLD)


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        ("subvol=/snapshots/a/@,ro", "subvol=/snapshots/b/@,ro"),
        ("subvol=snapshots/a/@,ro", "subvol=snapshots/b/@,ro"),
        ("subvol=//snapshots/a", "subvol=//snapshots/b"),
        ("subvol=/snapshots/ab/@ /snapshots/a", "subvol=/snapshots/ab/@ /snapshots/b"),
        ("subvol=/snapshots/a.b", "subvol=/snapshots/a.b"),
        ("subvol=/old/snapshots/a/@", "subvol=/old/snapshots/a/@"),
        ("# is /snapshots/a\n/snapshots/a,x", "# is /snapshots/b\n/snapshots/b,x"),
        ("snapshots/asnapshots/a", "snapshots/asnapshots/a"),
        ("", ""),
    ],
)
def test_only_whole_paths_are_replaced(text: str, carried: str) -> None:
    assert carry_forward(text, "/snapshots/a", "/snapshots/b") == carried


# Whose text


def made_from(template: str, path: str, *, text: str | None = None) -> BaseFstab:
    """A base that was staged from `template`, its etc/fstab since replaced by `text`."""
    rendered = render(template, path)
    return BaseFstab(rendered if text is None else text, path, digest(template), digest(rendered))


def next_base(staged: Rendered, path: str, *, edited: str = "") -> BaseFstab:
    return BaseFstab(staged.text + edited, path, staged.template_hash, staged.rendered_hash)


HASHES = (digest(WIKI), digest(render(WIKI, NEW)))


def test_untouched_is_the_template_rendered() -> None:
    assert decide(WIKI, made_from(WIKI, OLD), NEW) == Rendered(render(WIKI, NEW), Source.TEMPLATE, *HASHES)


def test_an_edited_template_is_rendered() -> None:
    base = made_from("LABEL=X / btrfs subvol=CURRENT_SNAPSHOTS_PATH/@,ro 0 0\n", OLD)
    assert decide(WIKI, base, NEW) == Rendered(render(WIKI, NEW), Source.TEMPLATE, *HASHES)


def test_for_a_foreign_base_the_template_is_rendered() -> None:
    base = BaseFstab("LABEL=MINE / btrfs subvol=/x/@ 0 0\n", OLD)
    assert decide(WIKI, base, NEW) == Rendered(render(WIKI, NEW), Source.TEMPLATE, *HASHES)


def test_bases_own_edit_is_carried_forward() -> None:
    own = render(WIKI, OLD) + "LABEL=DATA /srv ext4 defaults 0 0\n"
    staged = decide(WIKI, made_from(WIKI, OLD, text=own), NEW)
    assert staged.source is Source.BASE
    assert staged.text == render(WIKI, NEW) + "LABEL=DATA /srv ext4 defaults 0 0\n"


def test_an_own_edit_survives_generation_after_generation() -> None:
    first = decide(WIKI, made_from(WIKI, OLD, text=render(WIKI, OLD) + "a /b c\n"), NEW)
    second = decide(WIKI, next_base(first, NEW), NEWER)
    assert second.source is Source.BASE
    assert second.text == render(WIKI, NEWER) + "a /b c\n"
    third = decide(WIKI, next_base(second, NEWER), OLD)
    assert third.text == render(WIKI, OLD) + "a /b c\n"


def test_both_edited_is_refused_with_the_difference() -> None:
    base = made_from(WIKI, OLD, text=render(WIKI, OLD) + "LABEL=DATA /srv\x1b[2J ext4 defaults 0 0\n")
    with pytest.raises(Refused) as refusal:
        decide(WIKI.replace("/home", "/house"), base, NEW)
    message = refusal.value.message
    assert "nothing was changed" in message
    assert "\n+LABEL=DATA /srv [2J ext4 defaults 0 0" in message
    assert "\n-LABEL=ROOT /house btrfs" in message
    assert "\x1b" not in message
    assert sum(line.startswith(("+L", "-L")) for line in message.splitlines()) == 3  # the new path is no difference
    assert PLACEHOLDER in refusal.value.hint
    assert OLD in refusal.value.hint


def test_the_way_out_that_the_refusal_names_works() -> None:
    own = render(WIKI, OLD) + "a /b c\n"
    base = made_from(WIKI.replace("noatime", "relatime"), OLD, text=own)
    with pytest.raises(Refused):
        decide(WIKI, base, NEW)
    template = own.replace(OLD, PLACEHOLDER)
    staged = decide(template, base, NEW)
    assert staged.source is Source.TEMPLATE
    final = template + "d /e f\n"
    assert decide(final, next_base(staged, NEW), NEWER).text == render(final, NEWER)


def test_edits_that_agree_but_for_comments_are_no_conflict() -> None:
    base = made_from(WIKI, OLD, text="# mine\n" + render(WIKI, OLD) + "a /b c\n")
    staged = decide(WIKI + "# the same\na\t/b\tc\n", base, NEW)
    assert (staged.source, staged.text) == (Source.TEMPLATE, render(WIKI, NEW) + "# the same\na\t/b\tc\n")


def test_without_a_template_the_base_is_followed() -> None:
    own = "LABEL=R / btrfs subvol=/snapshots/20260101000000aaaaaaaa/@,ro 0 0\n"
    staged = decide(None, BaseFstab(own, OLD), NEW)
    assert staged == Rendered(own.replace(OLD, NEW), Source.BASE)
    assert decide(WIKI, next_base(staged, NEW), NEWER).source is Source.TEMPLATE


def test_without_either_it_is_refused() -> None:
    with pytest.raises(Refused, match="nothing was changed"):
        decide(None, BaseFstab(None, OLD), NEW)
    assert decide(WIKI, BaseFstab(None, OLD, "x", "y"), NEW).source is Source.TEMPLATE


@cheap()
@given(FSTABS, st.lists(st.tuples(st.sampled_from(["template", "own", "neither"]), WORDS), max_size=6))
def test_no_edit_is_ever_lost_silently(template: str, edits: list[tuple[str, str]]) -> None:
    """Over generations, what is staged holds each edit of either side, or the transaction is refused."""
    path, staged = "/snapshots/g", decide(template, made_from(template, "/snapshots/f"), "/snapshots/g")
    kept: list[str] = []
    for number, (side, word) in enumerate(edits):
        line = f"\n/dev/{number} /{word} ext4\n"
        template += line if side == "template" else ""
        base = next_base(staged, path, edited=line if side == "own" else "")
        path = f"/snapshots/g{number}"
        try:
            staged = decide(template, base, path)
        except Refused:
            assert {"template", "own"} <= {each for each, _ in edits[: number + 1]}
            return
        kept += [line] if side != "neither" else []
        assert all(parse(each)[0] in parse(staged.text) for each in kept)


# Mounts


def is_root_label(device: str) -> bool:
    return device == "LABEL=ROOT"


def mounts(text: str, commons: dict[str, str] | None = None) -> list[Mount]:
    return list(mounts_for_change(parse(render(text, NEW)), NEW, is_root_label, commons or {}))


def test_the_wikis_commons_var_writable_the_rest_not() -> None:
    assert mounts(WIKI) == [
        Mount("/home", "/commons/@home", writable=False),
        Mount("/var/cache", "/commons/@var@cache", writable=True),
        Mount("/var/log", "/commons/@var@log", writable=True),
    ]


def test_configuration_says_otherwise() -> None:
    wishes = {"/home/": "rw", "/var/log": "ro", "/var/cache": "skip", "/elsewhere": "rw"}
    assert [(each.mountpoint, each.writable) for each in mounts(WIKI, wishes)] == [
        ("/home", True),
        ("/var/log", False),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "LABEL=ROOT / btrfs subvol=CURRENT_SNAPSHOTS_PATH/@",
        "LABEL=ROOT // btrfs subvol=/commons/@x",
        "LABEL=ROOT /mnt btrfs subvol=CURRENT_SNAPSHOTS_PATH/@",
        "LABEL=ROOT /mnt btrfs subvol=CURRENT_SNAPSHOTS_PATH/@/deeper",
        "LABEL=ROOT /mnt btrfs defaults",
        "LABEL=ROOT /mnt btrfs subvol=/",
        "LABEL=ROOT /mnt btrfs subvol=",
        "LABEL=ROOT /mnt btrfs subvolid=5",
        "LABEL=ROOT /mnt btrfs subvol=/snapshots/other/@",
        "LABEL=ROOT /mnt btrfs subvol=snapshots/other/@",
        "LABEL=ROOT /mnt btrfs subvol=/commons/../snapshots",
        "LABEL=ROOT /mnt btrfs subvol=/commons/x/../@y",
        "LABEL=ROOT /mnt btrfs subvol=/./staging/x/@",
        "LABEL=ROOT /mnt btrfs subvol=current/0/@",
        "LABEL=ROOT /mnt btrfs subvol=/commons/@x,noauto",
        "LABEL=ROOT /mnt btrfs subvol=/commons/@x,_netdev",
        "LABEL=OTHER /mnt btrfs subvol=/commons/@x",
        "LABEL=ROOT /mnt ext4 subvol=/commons/@x",
        "LABEL=ROOT mnt btrfs subvol=/commons/@x",
        "LABEL=ROOT none btrfs subvol=/commons/@x",
        "LABEL=ROOT /var/../etc btrfs subvol=/commons/@x",
        "LABEL=ROOT /tmp btrfs subvol=/commons/@x",
        "LABEL=ROOT /run/user btrfs subvol=/commons/@x",
        "LABEL=ROOT //dev/shm btrfs subvol=/commons/@x",
        "LABEL=ROOT /proc/ btrfs subvol=/commons/@x",
        "LABEL=ROOT /sys/fs btrfs subvol=/commons/@x",
        "server:/export /srv nfs defaults",
        "LABEL=ESP /boot vfat defaults",
        "LABEL=SWAP none swap sw",
    ],
)
def test_never_mounted(line: str) -> None:
    assert mounts(line) == []
    assert mounts(line, {"/mnt": "rw", "/": "rw"}) == []


def test_other_subvolumes_of_the_generation_are_part_of_the_change() -> None:
    text = "LABEL=ROOT /usr btrfs subvol=CURRENT_SNAPSHOTS_PATH/@usr,ro,nodev\n"
    expected = Mount("/usr", f"{NEW}/@usr", writable=True, part="@usr", flags=("nodev",))
    assert mounts(text) == [expected]
    assert mounts(text, {"/usr": "ro"}) == [expected]


def test_what_fstab_mounts_read_only_stays_so_under_var() -> None:
    text = "LABEL=ROOT /var/x btrfs subvol=commons//@x,ro,noexec,nosuid,compress=zstd\n"
    assert mounts(text) == [Mount("/var/x", "/commons/@x", writable=False, flags=("nosuid", "noexec"))]
    assert mounts(text, {"/var/x": "rw"})[0].writable


def test_parents_come_first_and_the_last_line_of_a_mountpoint_counts() -> None:
    text = "\n".join(
        f"LABEL=ROOT {mountpoint} btrfs subvol=/commons/@{number}"
        for number, mountpoint in enumerate(["/var/log/x", "/var-x", "/var", "/varx/", "/var/log", "/srv", "/var/"])
    )
    found = mounts(text)
    assert [each.mountpoint for each in found] == ["/srv", "/var", "/var/log", "/var/log/x", "/var-x", "/varx"]
    assert [each.subvol[-1] for each in found] == list("564013")
    assert [each.writable for each in found] == [False, True, True, True, False, False]


@cheap(150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/", "/var", "/dev/x", "/home", "/home/../dev", "none"]) | WORDS,
            st.sampled_from(["/", "commons/@x", "/snapshots/x", f"{NEW}/@", f"{NEW}/@x", "/state", "../x"]) | WORDS,
        ),
        max_size=6,
    )
)
def test_whatever_fstab_says_our_own_stays_outside(lines: list[tuple[str, str]]) -> None:
    text = "\n".join(f"LABEL=ROOT {mountpoint} btrfs subvol={subvol}" for mountpoint, subvol in lines)
    found = mounts_for_change(parse(text), NEW, lambda device: True, {})
    seen: set[str] = set()
    for mount in found:
        assert mount.mountpoint.startswith("/")
        assert mount.mountpoint not in ("/", *seen)
        assert not any(before.startswith(mount.mountpoint + "/") for before in seen)
        assert mount.mountpoint.split("/")[1] not in ("dev", "proc", "sys", "run", "tmp")
        assert ".." not in mount.subvol.split("/")
        top = mount.subvol.split("/")[1]
        assert top not in ("", "staging", "links", "next", "current", "state")
        assert top != "snapshots" or mount.part
        assert mount.part != "@"
        seen.add(mount.mountpoint)
