"""`apk-atomic --help`, and the reminder for a line without a word."""

from __future__ import annotations

from apk_atomic.console import Console

TEXT = """\
usage: apk-atomic add|del|upgrade|fix …     as apk, but in a new generation that runs after the reboot
       apk-atomic info|list|search|update|… as apk
       apk-atomic status [--all] [--json]   what is booted, what boots next, how it came about
       apk-atomic diff [A [B]] [--json]     the package sets of two generations (ID, slot, booted, next)
       apk-atomic prove [A] [--json]        whether a generation would boot, and what speaks against it
       apk-atomic rollback [SLOT|ID]        another generation boots next
       apk-atomic discard                   drops the pending generation
       apk-atomic gc [--dry-run] [--json]   collects generations that nothing keeps
       apk-atomic shell                     a root shell in a new generation
       apk-atomic run -- COMMAND…           a command in a new generation
       apk-atomic init DEVICE|IMAGE …       a new system on a disk, in an image file, on a partition
       apk-atomic boot-config [--install]   the static boot menu; with --install, onto the ESP

options of ours, also on apk's lines:
  --atomic-base booted|next|ID   the generation to start from
  --atomic-message TEXT          why; kept in the record
  --atomic-wait SECONDS          wait for another transaction
  --atomic-accept PKG,…          let these packages stay broken
  --atomic-keep-failed           keep what failed, in no slot, to look at
  --atomic-unchanged-77          exit with 77 when nothing changed
  --atomic-volume DEVICE|DIR     a volume that is not the running system's"""

USAGE_STATUS = 1  # what apk answers to a line without an applet


def show(console: Console, *, asked: bool) -> int:
    """The text on stdout, exit status 0, when it was asked for; else on stderr, and 1."""
    if asked:
        console.answer(TEXT)
        return 0
    console.note(TEXT)
    return USAGE_STATUS
