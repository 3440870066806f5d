#!/usr/bin/env bash
# Build the native kernel for systems that this machine does not have, and run it where an emulator is.
#
#     tools/check_platforms.sh [--compile] [FOLDER]     (build/platforms if none is given)
#
# By the Clang of the package ziglang, with an error wherever 64 bits would become 32:
# - Windows x86-64: the wheel. The functions and imports of its DLL are read; under Wine it must give the bits of
#   the same compiler's build for Linux, and with many threads the numbers of one, of gradients and programs, too.
# - Linux arm64: under QEMU it must give the numbers of a plain loop.
# - macOS arm64: compiled and linked; nothing runs it.
# What cannot run because something is not installed is named, and the exit code is 77. With --compile nothing is linked
# or run. PYTHON: the one that has ziglang and setuptools.
set -euo pipefail
cd "$(dirname "$0")/.."
strict=(-Wshorten-64-to-32 -Werror)
compile_only=
if [ "${1:-}" = --compile ]; then
    compile_only=yes
    strict+=(-O0)
    shift
fi
folder=$(mkdir -p "${1:-build/platforms}" && cd "${1:-build/platforms}" && pwd)
python=${PYTHON:-python3}
native=keras2torch_birnn/rnn/native
missing=()

"$python" -c 'import ziglang, setuptools.command.bdist_wheel' 2> /dev/null ||
    { echo "$python has no package ziglang, or no setuptools >= 77" >&2; exit 77; }
export ZIG_GLOBAL_CACHE_DIR=$folder/zig WINEPREFIX=$folder/wine WINEDEBUG=-all
zig() { "$python" -m ziglang "$@"; }

compile() { # TARGET MACHINE SYSTEM: the objects of the kernel in a folder of this name
    local source flags
    mkdir -p "$folder/$1"
    for source in "$native"/*.cpp; do
        flags=$("$python" -c "
import runpy, sys
own, optional = runpy.run_path('$native/processors.py')['flags_of'](
    sys.argv[1], machine=sys.argv[2], system=sys.argv[3])
print(*runpy.run_path('$native/processors.py')['COMMON'], *own, *optional)" "$(basename "$source")" "$2" "$3")
        # shellcheck disable=SC2086
        zig c++ -target "$1" $flags "${strict[@]}" '-DK2T_SOURCE_HASH=UINT64_C(0)' \
            -c "$source" -o "$folder/$1/$(basename "$source" .cpp).o"
    done
}
program() { # SOURCE TARGET OUTPUT MORE ...: a program of the tests
    zig c++ -target "$2" -std=c++17 -O1 -I"$native" "tests/native/$1" -o "$3" "${@:4}"
}

if [ "$compile_only" ]; then
    compile x86_64-windows-gnu x86_64 Windows
    compile aarch64-macos.11.0 arm64 Linux # the flags without those of an Apple compiler for two processors
    compile aarch64-linux-musl aarch64 Linux
    echo "Windows x86-64, macOS arm64, Linux arm64: compiled"
    exit
fi

rm -rf "$folder/wheel"
K2T_REQUIRE_KERNEL=1 K2T_ZIG_TARGET=x86_64-windows-gnu K2T_CXXFLAGS="${strict[*]}" "$python" setup.py --quiet \
    egg_info --egg-base "$folder" build --build-base "$folder/build" \
    bdist_wheel --plat-name win_amd64 --dist-dir "$folder/wheel"
"$python" -m zipfile -e "$folder"/wheel/*-py3-none-win_amd64.whl "$folder/wheel"
dll=$folder/wheel/$native/libk2t.dll
"$python" tools/dll_tables.py "$dll" "$native/kernel.h" > "$folder/wheel/libk2t.def"
echo "Windows x86-64: wheel built; its DLL has the functions of kernel.h and imports of the system only"

compile aarch64-macos.11.0 arm64 Linux # the flags without those of an Apple compiler for two processors
zig c++ -target aarch64-macos.11.0 -shared "$folder"/aarch64-macos.11.0/*.o -o "$folder/libk2t.dylib"
echo "macOS arm64: compiled and linked, not run"

zig dlltool -m i386:x86-64 -d "$folder/wheel/libk2t.def" -l "$folder/wheel/libk2t.lib"
for source in compare exercise; do
    program $source.cpp x86_64-windows-gnu "$folder/$source.exe" "$folder/wheel/libk2t.lib"
done
cp "$dll" "$folder"
wine=$(command -v wine wine64 /usr/lib/wine/wine64 | head -1 || true)
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    missing+=("Linux on x86-64")
elif [ -z "$wine" ]; then
    missing+=(wine)
else
    compile x86_64-linux-gnu x86_64 Linux
    program compare.cpp x86_64-linux-gnu "$folder/compare" "$folder"/x86_64-linux-gnu/*.o
    amx=$((1 << 6 | 1 << 7)) # Windows does not keep its registers
    "$folder/compare" "$folder/linux.bin" $amx
    (cd "$folder" && "$wine" compare.exe windows.bin $amx && "$wine" exercise.exe)
    cmp "$folder/linux.bin" "$folder/windows.bin"
    echo "Windows x86-64, under Wine: the bits of the same compiler's build for Linux"
fi

compile aarch64-linux-musl aarch64 Linux
program compare.cpp aarch64-linux-musl "$folder/compare-arm64" -static "$folder"/aarch64-linux-musl/*.o
if command -v qemu-aarch64 > /dev/null; then
    qemu-aarch64 "$folder/compare-arm64"
    echo "Linux arm64, under QEMU: the numbers of a plain loop"
else
    missing+=(qemu-aarch64)
fi

[ ${#missing[@]} = 0 ] || { echo "not installed: ${missing[*]}" >&2; exit 77; }
