# fish completion for apk-atomic; made from its tables by tools/completions.py

# The verb or applet of the line so far.
function __apk_atomic_current
	set -l skip no
	for token in (commandline -opc)[2..-1]
		if test $skip = yes
			set skip no
		else if contains -- $token @SKIPPED_WORDS@
			set skip yes
		else if not string match -q -- '-*' $token
			echo $token
			return
		end
	end
end

function __apk_atomic_no_word
	set -l word (__apk_atomic_current)
	test -z "$word"
end

function __apk_atomic_word
	set -l word (__apk_atomic_current)
	contains -- "$word" $argv
end

# Generations and slots by what status tells: root hears of all, others of those that have a slot.
function __apk_atomic_generation
	printf '%s\n' booted next
	apk-atomic status --all --json 2>/dev/null | sed 's/[][,{}]/\n/g' |
		sed -n 's/^ *"id": "\([^"]*\)"$/\1/p; s/^ *"\([0-9]\{14\}[a-z]\{8\}\)"$/\1/p; s/^ *\([0-9][0-9]*\)$/\1/p' |
		sort -u
end

function __apk_atomic_installed
	apk-atomic info -q 2>/dev/null
end

function __apk_atomic_available
	set -l typed (commandline -ct)
	test -z "$typed"; or apk-atomic search -q -- $typed 2>/dev/null
	__fish_complete_suffix .apk
end

complete -c apk-atomic -f
@FISH@
