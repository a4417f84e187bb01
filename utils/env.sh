# Sourced by the launchers: finds or makes the environment, and defines `launch`.
# An active virtual or conda environment is used as it is; otherwise .venv beside this project is made on first use.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2

die() { echo "error: $*" >&2; exit 2; }

has_nvidia() { # is there an NVIDIA driver? Containers may have one without nvidia-smi
    command -v nvidia-smi >/dev/null || [ -e /dev/nvidiactl ] || [ -e /proc/driver/nvidia/version ]
}

count_gpus() { # those of the machine
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU'
    else
        find /dev -maxdepth 1 -name 'nvidia[0-9]*' | grep -c .
    fi
}

is_python() { # is_python COMMAND OLDEST NEWEST: does it run, and is it Python 3 of these minor versions?
    "$1" -c "import sys; sys.exit(not (3, $2) <= sys.version_info[:2] <= (3, $3))" 2>/dev/null
}

find_python() { # $PYTHON, else the first interpreter of a version that the project is tried with, else a newer one
    local name
    if [ -n "${PYTHON:-}" ]; then
        is_python "$PYTHON" 10 99 || die "PYTHON=$PYTHON is no Python 3.10 or newer that runs"
        echo "$PYTHON"
        return
    fi
    for name in python3 python python3.{13,12,11,10}; do
        is_python "$name" 10 13 && echo "$name" && return
    done
    for name in python3 python3.{14..20}; do
        is_python "$name" 10 99 && echo "$name" && return
    done
    die "no Python 3.10 or newer found; 'apt install python3 python3-venv' or 'uv python install 3.12' brings one," \
        "or name one with PYTHON=/path/to/python3"
}

lock() { # hold the file .venv.lock until descriptor 9 is closed, by Python's flock: macOS has no such command
    exec 9>"$ROOT/.venv.lock"
    "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || die "cannot lock $ROOT/.venv.lock"
}

install() { # install REQUIREMENTS into .venv, once for each content of the requirements
    local venv=$ROOT/.venv stamp=$ROOT/.venv/.installed-$1 wanted python
    wanted=$(cat "$ROOT"/requirements*.txt | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    python=$(find_python) || exit 2
    (: >>"$ROOT/.venv.lock") 2>/dev/null ||
        die "cannot write .venv into $ROOT; activate an environment of your own, and 'pip install -r $ROOT/$1' into it"
    lock "$python"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        make_venv "$python" "$venv"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$ROOT/$1" ||
            die "could not install $1 into $venv; the lines above say why (network? disk?), then run this again"
        echo "$wanted" >"$stamp"
    fi
    exec 9>&-
}

make_venv() { # make_venv PYTHON FOLDER, with PyTorch where its CPU build is enough
    if ! "$2/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "making $2 with $("$1" --version) (once, a few minutes)"
        rm -rf "$2"
        "$1" -m venv "$2" >/dev/null || die "$1 cannot make a virtual environment; apt install python3-venv"
    fi
    # Without an NVIDIA driver the CPU build of PyTorch is enough, and gigabytes smaller.
    if ! has_nvidia && ! "$2/bin/python" -c 'import torch' 2>/dev/null; then
        "$2/bin/python" -m pip install -q --disable-pip-version-check --retries 1 --timeout 20 \
            "$(grep '^torch' "$ROOT/requirements.txt")" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
            echo "the CPU build of PyTorch could not be fetched; taking the default build"
    fi
}

require_packages() { # refuse an active environment that lacks packages, without importing any
    local active=${VIRTUAL_ENV:-$CONDA_PREFIX} lacking
    local names="torch diffusers transformers peft accelerate omegaconf einops huggingface_hub safetensors imageio
        imageio_ffmpeg PIL psutil ftfy matplotlib tqdm"
    [ "$1" = requirements-dev.txt ] && names+=" pytest xdist hypothesis ruff"
    lacking=$(python -c 'import sys; from importlib.util import find_spec; print(*filter(lambda name: not find_spec(name), sys.argv[1:]))' $names) ||
        die "the active environment at $active has no python that runs; deactivate it, or make it anew"
    [ -z "$lacking" ] || die "the active environment at $active lacks ${lacking// /, }; 'pip install -r $ROOT/$1' into it, or deactivate it"
}

use_environment() { # use_environment [REQUIREMENTS]
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        require_packages "${1:-requirements.txt}"
    else
        install "${1:-requirements.txt}"
        export VIRTUAL_ENV=$ROOT/.venv PATH=$ROOT/.venv/bin:$PATH
    fi
    export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 # not what lies in the caller's folder
}

# choose_config DEFAULT [CONFIG.yaml] [key=value ...]: sets $config and the array $settings; $CONFIG names one too.
choose_config() {
    config=${CONFIG:-$1}
    shift
    if [[ $# -gt 0 && $1 != *=* && $1 != -* ]]; then
        config=$1
        shift
    fi
    settings=("$@")
}

# launch MODULE [arguments]: one process for each GPU that $GPU names ("0", "0,1", "GPU-...", "MIG-..."), else
# $CUDA_VISIBLE_DEVICES, else of the machine; one CPU process without any. $NGPU sets the number itself.
# $GPUS_PER_VIDEO processes make one video together. $NNODES, $NODE_RANK, $MASTER_ADDR and $PORT join several machines.
launch() {
    local processes=${GPUS_PER_VIDEO:-1} commas
    [[ -z ${GPUS_PER_VIDEO:-} || $1 == inference || $1 == generate_latent ]] ||
        die "GPUS_PER_VIDEO is for inference.sh and generate_latent.sh; unset it"
    export GPU=${GPU:-${GPUS:-}}
    [ -n "$GPU" ] && export CUDA_VISIBLE_DEVICES=$GPU
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        commas=${CUDA_VISIBLE_DEVICES//[^,]/}
        processes=$((${#commas} + 1))
    elif [ -z "${CUDA_VISIBLE_DEVICES+set}" ]; then
        processes=$(count_gpus) || processes=${GPUS_PER_VIDEO:-1}
    fi
    # Several threads pin host memory: 0.11 s a GB. PyTorch's default takes 0.44 s, in which no kernel is queued.
    local pinning=pinned_use_cuda_host_register:True,pinned_num_register_threads:8
    export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-$pinning}}
    exec python -m utils.launch --nproc-per-node "${NGPU:-$processes}" "$@"
}
