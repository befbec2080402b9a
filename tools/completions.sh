_apk_atomic_word() {
	options='' values='' operands=''
	case $1 in
@TABLE@
	esac
}

# Generations and slots by what status tells: root hears of all, others of those that have a slot.
_apk_atomic_generations() {
	echo booted next
	apk-atomic status --all --json 2>/dev/null | sed 's/[][,{}]/\n/g' |
		sed -n 's/^ *"id": "\([^"]*\)"$/\1/p; s/^ *"\([0-9]\{14\}[a-z]\{8\}\)"$/\1/p; s/^ *\([0-9][0-9]*\)$/\1/p' |
		sort -u
}
