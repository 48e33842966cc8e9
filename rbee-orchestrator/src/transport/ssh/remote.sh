# What the queen's scripts on a hive's machine share. POSIX sh, and no more than its utilities.

# fields PID: the numbers of a process as Linux tells them, from its state on.
fields() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The program's name stands before them, in brackets, and may hold any character.
    printf %s "${stat##*) }"
}

# started PID: when a process began, as a number in the system's own unit; fails if it has ended.
started() {
    if [ -r /proc/self/stat ]; then
        found=$(fields "$1") || return 1
        # shellcheck disable=SC2086 # one word for each number
        set -- $found
        case $1 in Z | X | x) return 1 ;; esac
        shift 19
        printf %s "$1"
    else
        found=$(LC_ALL=C TZ=UTC ps -o stat=,lstart= -p "$1" 2>/dev/null) || return 1
        # shellcheck disable=SC2086
        set -- $found
        case ${1-Z} in Z*) return 1 ;; esac
        shift
        printf %s "$*" | cksum | cut -d ' ' -f 1
    fi
}

# runs PID STARTED: whether that very process runs, and not a later one with its number.
runs() { [ "$(started "$1")" = "$2" ]; }

# leads PID: whether a process leads its group, as one that was started here does.
leads() {
    if [ -r /proc/self/stat ]; then
        found=$(fields "$1") || return 1
        # shellcheck disable=SC2086
        set -- "$1" $found
        [ "$1" = "$4" ]
    else
        [ "$1" = "$(ps -o pgid= -p "$1" | tr -d ' ')" ]
    fi
}

# kill_group PID: kills the group that a process leads. Some shells want the dashes, some do not.
kill_group() { kill -s KILL -- "-$1" 2>/dev/null || kill -s KILL "-$1"; }

# listeners PORT: the users whose programs listen on a port, by number; Linux only.
listeners() {
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        awk -v port="$(printf ':%04X' "$1")" \
            '$4 == "0A" && substr($2, length($2) - 4) == port { print $8 }'
}

# listens PORT: whether something does.
listens() {
    if [ -r /proc/net/tcp ]; then
        [ -n "$(listeners "$1")" ]
    else
        netstat -an 2>/dev/null | grep LISTEN | grep -q "[.:]$1[[:space:]]"
    fi
}

# is_program FILE: whether it can be run.
is_program() { [ -f "$1" ] && [ -x "$1" ]; }

# find_program NAME FOLDER...: a program's path, from the folders or else from PATH.
find_program() {
    name=$1
    shift
    for folder; do
        if is_program "$folder/$name"; then
            printf %s "$folder/$name"
            return
        fi
    done
    found=$(command -v "$name") || return 1
    # A builtin of the shell has no path.
    case $found in /*) printf %s "$found" ;; *) return 1 ;; esac
}

# briefly PROGRAM ARGUMENT...: runs it for 10 s at most, where the system can tell it to stop.
briefly() {
    if command -v timeout >/dev/null; then timeout 10 "$@"; else "$@"; fi
}

# detached LOG PROGRAM ARGUMENT...: starts a program that outlives this shell, in a session and a
# group of its own; sets pid, for the caller.
# shellcheck disable=SC2034
detached() {
    log=$1
    shift
    if command -v setsid >/dev/null; then
        setsid "$@" >>"$log" 2>&1 </dev/null &
    elif command -v perl >/dev/null; then
        perl -e 'use POSIX; POSIX::setsid(); exec { $ARGV[0] } @ARGV; exit 127' "$@" \
            >>"$log" 2>&1 </dev/null &
    else
        echo 'neither setsid nor perl is there' >&2
        return 1
    fi
    pid=$!
}

# checksum FILE: the kind and the value of a checksum.
checksum() {
    if command -v sha256sum >/dev/null; then
        printf 'sha256 %s' "$(sha256sum <"$1" | cut -d ' ' -f 1)"
    elif command -v shasum >/dev/null; then
        printf 'sha256 %s' "$(shasum -a 256 <"$1" | cut -d ' ' -f 1)"
    else
        printf 'cksum %s' "$(cksum <"$1" | cut -d ' ' -f 1)"
    fi
}
