"""How fast apk-atomic is, beside bare apk and beside the wiki's script: `make bench`, or `python -m bench --help`.

It builds its own volumes on loop devices in memory, runs what is compared in turns (A B A B …) and reports medians,
their differences and ratios; absolute times belong to one machine. It changes nothing outside its volumes and leaves
nothing behind. Nothing here is a test: no run fails because a machine is slow, unless `--check` asks for that.
"""
