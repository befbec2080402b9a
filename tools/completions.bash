# bash completion for apk-atomic; made from its tables by tools/completions.py

@HEAD@

_apk_atomic_offer() {
	case $1 in
	generation) mapfile -t COMPREPLY < <(compgen -W "$(_apk_atomic_generations)" -- "$cur") ;;
	installed) mapfile -t COMPREPLY < <(compgen -W "$(apk-atomic info -q 2>/dev/null)" -- "$cur") ;;
	available)
		mapfile -t COMPREPLY < <(compgen -W "${cur:+$(apk-atomic search -q -- "$cur" 2>/dev/null)}" -- "$cur"
			compgen -f -X '!*.apk' -- "$cur")
		;;
	command) mapfile -t COMPREPLY < <(compgen -c -- "$cur") ;;
	file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && compopt -o filenames 2>/dev/null ;;
	'='*) mapfile -t COMPREPLY < <(compgen -W "$(echo "${1#=}" | tr , ' ')" -- "$cur") ;;
	esac
}

_apk_atomic() {
	local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} word='' options values operands at given
	COMPREPLY=()
	# --option=value is three words here
	if [[ $cur == '=' ]]; then
		cur=''
	elif [[ $before == '=' ]]; then
		before=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	for ((at = 1; at < COMP_CWORD; at++)); do
		case ${COMP_WORDS[at]} in
		@SKIPPED@)
			((at++))
			[[ ${COMP_WORDS[at]} != '=' ]] || ((at++))
			;;
		-*) ;;
		*)
			word=${COMP_WORDS[at]}
			break
			;;
		esac
	done
	_apk_atomic_word "$word"
	if [[ $operands == command ]] && ((COMP_CWORD - at > 1)) && [[ $before != -- ]]; then
		_apk_atomic_offer file
		return
	fi
	for given in $values; do
		if [[ ${given%%:*} == "$before" ]]; then
			_apk_atomic_offer "${given#*:}"
			return
		fi
	done
	if [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
	elif [[ ! $word ]]; then
		mapfile -t COMPREPLY < <(compgen -W '@WORDS@' -- "$cur")
	else
		_apk_atomic_offer "$operands"
	fi
}

complete -F _apk_atomic apk-atomic
