# Sourced by the launchers: makes .venv on first use, and defines launch_torchrun.
# An active virtual or conda environment is used as it is (requirements.txt says what it needs).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

die() { echo "error: $*" >&2; exit 2; }

find_python() { # the first interpreter that runs and is new enough
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.10 python3.13; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

install() { # install REQUIREMENTS into .venv, once for each content of that file
    local stamp=".venv/.installed-$1" python
    local wanted
    wanted=$(cat requirements*.txt | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    exec 9>.venv.lock
    flock 9
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || die "no Python 3.10 to 3.13 found; apt install python3, or set PYTHON=/path/to/python3"
        echo "making .venv with $("$python" --version) (once, a few minutes)"
        rm -rf .venv
        "$python" -m venv .venv || die "$python cannot make a virtual environment; apt install python3-venv"
    fi
    # Without an NVIDIA driver the CPU build of PyTorch is enough, and gigabytes smaller.
    if ! command -v nvidia-smi >/dev/null && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
        .venv/bin/python -m pip install -q --disable-pip-version-check --retries 1 --timeout 20 "$(grep '^torch' requirements.txt)" \
            --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
            echo "the CPU build of PyTorch could not be fetched; taking the default build"
    fi
    .venv/bin/python -m pip install -q --disable-pip-version-check -r "$1" ||
        die "could not install $1 into .venv; the lines above say why (network? disk?), then run this again"
    echo "$wanted" >"$stamp"
    flock -u 9
}

require_packages() { # refuse an active environment that lacks packages, without importing any
    local names="torch diffusers transformers peft accelerate omegaconf einops huggingface_hub safetensors imageio
        imageio_ffmpeg PIL psutil ftfy matplotlib tqdm" lacking
    [ "$1" = requirements-dev.txt ] && names+=" pytest xdist hypothesis ruff"
    lacking=$(python -c 'import sys; from importlib.util import find_spec; print(*filter(lambda name: not find_spec(name), sys.argv[1:]))' $names) ||
        die "the active environment at ${VIRTUAL_ENV:-$CONDA_PREFIX} has no python that runs; deactivate it, or make it anew"
    [ -z "$lacking" ] ||
        die "the active environment at ${VIRTUAL_ENV:-$CONDA_PREFIX} lacks ${lacking// /, }; 'pip install -r $1' into it, or deactivate it"
}

use_environment() { # use_environment [REQUIREMENTS]
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        install "${1:-requirements.txt}"
        VIRTUAL_ENV=$PWD/.venv
        PATH=$VIRTUAL_ENV/bin:$PATH
        export VIRTUAL_ENV PATH
    else
        require_packages "${1:-requirements.txt}"
    fi
}

# One process per GPU in $GPU ("0", "0,1", ...; all of them when unset), one CPU process without any;
# $NGPU sets the number itself. $PORT is for several runs on one machine; $NNODES, $NODE_RANK and
# $MASTER_ADDR are for several machines.
launch_torchrun() {
    local processes=1
    if [ -n "${GPU:-}" ]; then
        case $GPU in *[!0-9,]* | ,* | *, | *,,*) die "GPU=$GPU is not a list of GPU numbers such as 0 or 0,1" ;; esac
        export CUDA_VISIBLE_DEVICES=$GPU
        processes=$(($(tr -cd , <<<"$GPU" | wc -c) + 1))
    elif command -v nvidia-smi >/dev/null && [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
        processes=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || processes=1
    fi
    processes=${NGPU:-$processes}
    [ "$processes" -gt 1 ] && export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # torchrun's own choice, without its notice
    if [ -n "${NNODES:-}" ]; then
        set -- --nnodes "$NNODES" --node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-localhost}" "$@"
    fi
    python -m utils.launch --nproc-per-node "$processes" --master-port "${PORT:-29500}" "$@"
}
