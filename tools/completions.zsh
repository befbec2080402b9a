#compdef apk-atomic
# zsh completion for apk-atomic; made from its tables by tools/completions.py

@HEAD@

_apk_atomic_offer() {
	case $1 in
	generation) compadd -- $(_apk_atomic_generations) ;;
	installed) compadd -- $(apk-atomic info -q 2>/dev/null) ;;
	available)
		[[ -z $PREFIX ]] || compadd -- $(apk-atomic search -q -- $PREFIX 2>/dev/null)
		_files -g '*.apk'
		;;
	command) _command_names ;;
	file) _files ;;
	'='*) compadd -- ${(s:,:)1#=} ;;
	esac
}

_apk_atomic() {
	local word='' options values operands at given
	local -a described=(
@DESCRIBED@
	)
	for ((at = 2; at < CURRENT; at++)); do
		case $words[at] in
		(@SKIPPED@) ((at++)) ;;
		(-*) ;;
		(*) word=$words[at]; break ;;
		esac
	done
	_apk_atomic_word "$word"
	if [[ $operands == command ]] && ((CURRENT - at > 1)) && [[ $words[CURRENT-1] != -- ]]; then
		_files
		return
	fi
	for given in ${=values}; do
		if [[ ${given%%:*} == $words[CURRENT-1] ]]; then
			_apk_atomic_offer ${given#*:}
			return
		elif [[ $PREFIX == ${given%%:*}=* ]]; then
			compset -P '*='
			_apk_atomic_offer ${given#*:}
			return
		fi
	done
	if [[ $PREFIX == -* ]]; then
		compadd -- ${=options}
	elif [[ -z $word ]]; then
		_describe word described
	else
		_apk_atomic_offer $operands
	fi
}

_apk_atomic "$@"
