#!/bin/sh
# Create the virtual environment and install the project into it; does nothing when it is up to date. Usage: tools/setup.sh VENV
set -eu
venv=$1
stamp=$venv/.installed
wanted=$(cat pyproject.toml constraints.txt | cksum)-$(pwd -P)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$venv/bin/python" ]; then exit 0; fi

fail() { echo "setup: $*" >&2; exit 1; }

suits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }
python=
for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python; do
    if command -v "$candidate" >/dev/null 2>&1 && suits "$candidate"; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 with the venv module is on the PATH. Install one, or name it: make run PYTHON=/path/to/python3"

free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
[ "$free" -ge "${MULTICROP_DISK_MB:-4000}" ] || fail "the environment needs about 4 GB of disk, $(pwd) has $free MB free. Free some, or clone elsewhere"

echo "setup: installing into $venv with $("$python" --version), once (a few minutes)"
[ -x "$venv/bin/python" ] && suits "$venv/bin/python" || "$python" -m venv --clear "$venv"
log=$venv/setup.log
install() { "$venv/bin/python" -m pip install --no-compile --disable-pip-version-check --progress-bar off -c constraints.txt "$@"; }
# The pip that Python 3.11 brings reads the index pages of 200 packages in three times the processor time. Without bytecode, which Python writes
# for the fifth of the modules that are ever imported: all of it takes minutes.
if ! { install --upgrade pip || true; install -e '.[test]'; } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    if grep -qiE 'no space left' "$log"; then fail "the disk is full; free about 4 GB and call again"; fi
    if grep -qiE 'connection|resolve|timed out|network|ProxyError|SSLError|from versions: none' "$log"; then
        fail "the Python package registry could not be reached; check the network or pip's index settings, then call again"
    fi
    fail "pip could not install the project; the whole log is $log"
fi
# Without bytecode each start takes 20 seconds where PYTHONDONTWRITEBYTECODE is set, as in many containers. An import of what runs import writes it.
PYTHONDONTWRITEBYTECODE= "$venv/bin/python" -c '
import lightning.pytorch.loggers, matplotlib.pyplot, ot, peft, scipy.optimize, sklearn.linear_model, statsmodels.stats.multitest, wandb
import multicrop.adapters.descent, multicrop.cli, multicrop.encoder.loading, multicrop.features.fill, multicrop.runs.experiment
import torchvision.transforms.v2, transformers.models.clip.image_processing_clip, transformers.models.clip.modeling_clip
' >>"$log" 2>&1 || true
printf '%s' "$wanted" >"$stamp"
