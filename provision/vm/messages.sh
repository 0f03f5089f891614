# shellcheck shell=bash
# What the scripts of this folder and of provision/container say, on standard error; to be sourced.
#
#   WHO=image . provision/vm/messages.sh
#
# WHO stands before each message: whose it is.

say() { printf '%s: %s\n' "$WHO" "$*" >&2; }

die() { # what is wrong, what to do about it, the exit status [1]
  say "$1"
  [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
  exit "${3:-1}"
}
