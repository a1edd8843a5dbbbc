# Sourced by quickstart.sh, test.sh and .ci/peers: moves to the repository's root and makes the environment in .venv.
#   setup_env EXTRAS   the package (editable) with these extras, e.g. "eval,plots", as pinned in constraints.txt
#   pip_install ...    anything else, as pinned
# Both make .venv if it is not there. PYTHON names another interpreter than python3 to make it with.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV_PYTHON="$PWD/.venv/bin/python"

make_venv() {
    # A .venv whose making was interrupted, or whose interpreter is gone, has no working pip and is made again.
    "$VENV_PYTHON" -m pip --version > /dev/null 2>&1 && return
    local python="${PYTHON:-python3}" version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || version="none"
    case "$version" in
        3.11 | 3.12 | 3.13) ;;
        *)
            echo "error: embed-jax needs Python 3.11 to 3.13; $python is $version (name another: PYTHON=python3.12)" >&2
            exit 2
            ;;
    esac
    echo "Making .venv with Python $version"
    "$python" -m venv --clear .venv
}

pip_install() {
    make_venv
    "$VENV_PYTHON" -m pip install --disable-pip-version-check --constraint scripts/constraints.txt "$@"
}

setup_env() {
    # The stamp holds a checksum of what decides the environment, then the extras installed under it.
    local stamp=.venv/embed_jax_installed checksum extra missing=""
    make_venv
    checksum=$({ pwd; cat setup.cfg pyproject.toml scripts/constraints.txt; } | cksum)
    if [ "$(head -n 1 "$stamp" 2> /dev/null)" != "$checksum" ]; then
        rm -f "$stamp"
    fi
    for extra in ${1//,/ }; do
        grep -qxF "$extra" "$stamp" 2> /dev/null || missing=yes
    done
    [ -n "$missing" ] || return 0
    echo "Installing embed-jax[$1] into .venv (the first time takes some minutes)"
    pip_install --editable ".[$1]"
    [ -f "$stamp" ] || echo "$checksum" > "$stamp"
    tr ',' '\n' <<< "$1" >> "$stamp"
}
