#!/usr/bin/env bash
# Build the native kernel for 64-bit ARM and compare it with a plain loop, under emulation.
#
#     tools/check_arm64.sh [FOLDER]     (build/arm64 if none is given)
#
# It needs a cross compiler and an emulator; on Debian: g++-aarch64-linux-gnu qemu-user. CXX and RUN
# name others; with CXX=c++ RUN= it checks the kernel of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/arm64}
cxx=${CXX:-aarch64-linux-gnu-g++}
run=${RUN-qemu-aarch64 -L /usr/aarch64-linux-gnu}
native=keras2torch_birnn/rnn/native

for program in "$cxx" ${run%% *}; do
    command -v "$program" > /dev/null || { echo "$program is not installed" >&2; exit 77; }
done
mkdir -p "$folder"
python=${PYTHON:-python3}
compile() { # SOURCE OUTPUT [MORE ...], with the flags that setup.py has where the processor is not an x86
    local flags
    flags=$($python -c "
import runpy, sys
common = runpy.run_path('$native/sources.py')['COMMON']
own, _ = runpy.run_path('$native/processors.py')['flags_of'](
    sys.argv[1], machine='aarch64', system='Linux')
print(*common, *own)" "$(basename "$1")")
    # shellcheck disable=SC2086
    "$cxx" $flags "$1" -o "$2" "${@:3}"
}
for source in "$native"/*.cpp; do # those of x86 are empty elsewhere
    compile "$source" "$folder/$(basename "$source" .cpp).o" -c '-DK2T_SOURCE_HASH=UINT64_C(0)'
done
compile tests/native/compare.cpp "$folder/compare" -I"$native" "$folder"/*.o
$run "$folder/compare"
