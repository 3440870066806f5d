"""Builds the native kernel: one shared library beside the package, with no Python or torch ABI.

It is optional. Without a C++ compiler the package installs and runs in plain torch.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("keras2torch_birnn/rnn/native")
# -O2 -g0 -fno-wrapv: with Python's own -O3 -g -fwrapv, GCC takes minutes over the unrolled products
# and makes nothing faster.
COMMON = "-std=c++17 -O2 -g0 -fno-wrapv -fPIC -fvisibility=hidden -pthread -Wall -Wextra".split()
# One file per instruction set, each with its own flags; the processor is asked at run time.
FLAGS = {
    "isa_avx2.cpp": ["-mavx2", "-mfma"],
    "isa_avx512.cpp": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ],
}
X86 = platform.machine().lower() in ("x86_64", "amd64")


class BuildNative(build_ext):
    """Compiles every file with the flags of its instruction set; a failure is a warning."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the library's path: no Python version in its name, for it knows none."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Nothing is a Python module here."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; setuptools turns an error of an optional extension into a warning."""
        objects = []
        for source in ext.sources:
            # A universal macOS build compiles all for arm64, too: the plain kernel alone then.
            flags = FLAGS.get(Path(source).name, []) if X86 else []
            objects += self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                extra_postargs=[*COMMON, *flags, *os.environ.get("K2T_CXXFLAGS", "").split()],
                depends=ext.depends,
            )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=["-pthread", *os.environ.get("K2T_LDFLAGS", "").split()],
            target_lang="c++",
        )


class WheelForEveryPython(bdist_wheel):
    """Tags the wheel by platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3 and any ABI; this platform."""
        return "py3", "none", super().get_tag()[2]


native = Extension(
    "keras2torch_birnn.rnn.native.libk2t",
    sources=[str(path) for path in sorted(NATIVE.glob("*.cpp"))],
    depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
    language="c++",
    optional=True,
)

setup(
    # MSVC has no vector extensions: pure Python there.
    ext_modules=[] if sys.platform == "win32" else [native],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": WheelForEveryPython},
)
