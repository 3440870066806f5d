"""Build the native kernel: one shared library beside the package, with no Python or torch ABI.

It is optional. Without a C++ compiler the package installs and runs in plain torch. The library
carries the hash of its sources: Python does not use one that was built from others. It is kept in
``build/kernel``, so that what installs the package again does not compile it again. For Windows the
compiler is the Clang of the package ``ziglang``: MSVC has no vector extensions, and ``fmaf`` of
MinGW rounds wrongly.

Environment variables: K2T_CXXFLAGS and K2T_LDFLAGS add flags for compiler and linker; with
K2T_REQUIRE_KERNEL=1 there is no package without the kernel; K2T_ZIG_TARGET=x86_64-windows-gnu
builds for Windows on another system; K2T_SOURCE_URL is the address of the project's files on the
web, for the links of the description that a package index shows.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("keras2torch_birnn/rnn/native")
KEPT = Path("build/kernel").absolute()
PROCESSORS = runpy.run_path(str(NATIVE / "processors.py"))
# By what Python was built for: on an ARM processor Windows runs Python for x86-64, too.
ZIG_TARGET = os.environ.get(
    "K2T_ZIG_TARGET", "x86_64-windows-gnu" if sysconfig.get_platform() == "win-amd64" else ""
)
SUFFIX = ".dll" if ZIG_TARGET else ".so"  # as native/library.py has it


def _words(variable: str) -> list[str]:
    return os.environ.get(variable, "").split()


class BuildNative(build_ext):
    """Build command that compiles each file for its instruction set; a failure is a warning."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the library's path, without a Python version in its name."""
        return str(Path(*fullname.split("."))) + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return no symbols: the library is no Python module."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; setuptools turns an error of an optional extension into a warning."""
        target = Path(self.get_ext_fullpath(ext.name))
        # One that an earlier build left there would be packed if this build fails.
        target.unlink(missing_ok=True)
        kept = self._kept(ext)
        if not kept.exists():
            print("compiling the native kernel, which takes about a minute", file=sys.stderr)
            if ZIG_TARGET:
                self._build_for_windows(ext, kept)
            else:
                self._build(ext, kept)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, target)

    def _build(self, ext: Extension, library: Path) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [*pool.map(partial(self._compile, ext), ext.sources)]
        self.compiler.link_shared_object(
            objects,
            str(library),
            extra_postargs=["-pthread", *_words("K2T_LDFLAGS")],
            target_lang="c++",
        )

    def _build_for_windows(self, ext: Extension, library: Path) -> None:
        """Compile and link by Zig, which leaves an import library beside what it links."""
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        macros = [f"-D{name}={value}" for name, value in ext.define_macros]

        def compile_one(source: str) -> str:
            compiled = str(folder / f"{Path(source).stem}.obj")
            own, optional = PROCESSORS["flags_of"](
                Path(source).name, machine="x86_64", system="Windows"
            )
            flags = [*PROCESSORS["COMMON"], *own, *optional, *_words("K2T_CXXFLAGS")]
            _run_zig(*flags, *macros, "-c", source, "-o", compiled)
            return compiled

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [*pool.map(compile_one, ext.sources)]
        linked = folder / library.name
        _run_zig("-shared", "-s", *objects, "-o", str(linked), *_words("K2T_LDFLAGS"))
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(linked, library)

    def _kept(self, ext: Extension) -> Path:
        """Return where the library of these sources, flags and compiler stays for later builds."""
        compiler = ["zig", ZIG_TARGET] if ZIG_TARGET else self.compiler.compiler_so
        command = (*compiler, *_words("K2T_CXXFLAGS"), *_words("K2T_LDFLAGS"))
        made_by = repr((ext.define_macros, command, platform.machine(), platform.system()))
        return KEPT / f"libk2t-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}{SUFFIX}"

    def _compile(self, ext: Extension, source: str) -> str:
        flags, optional = PROCESSORS["flags_of"](
            Path(source).name, machine=platform.machine(), system=platform.system()
        )
        if optional and not self._compiles(optional):
            optional = []
        (compiled,) = self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            macros=ext.define_macros,
            extra_postargs=[*PROCESSORS["COMMON"], *flags, *optional, *_words("K2T_CXXFLAGS")],
            depends=ext.depends,
        )
        return str(compiled)

    def _compiles(self, flags: Sequence[str]) -> bool:
        """Return whether the compiler knows these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.cpp"
            source.write_text("int empty;\n", encoding="utf-8")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[*flags])
            except CompileError:
                return False
        return True


def _run_zig(*arguments: str) -> None:
    """Run the C++ compiler of the package ziglang for the system that is built for."""
    command = [sys.executable, "-m", "ziglang", "c++", "-target", ZIG_TARGET, *arguments]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(f"ziglang did not build the kernel: {error}") from error


class WheelForEveryPython(bdist_wheel):
    """Wheel that is tagged by platform alone, or by none if it has no library."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return any Python 3 and any ABI; this platform if a library was built."""
        built = self.get_finalized_command("build_ext").get_outputs()
        self.root_is_pure = not any(Path(file).exists() for file in built)
        return "py3", "none", super().get_tag()[2]


def describe_project(readme: str, source: str | None) -> str:
    """Return the README for a package index, where the files beside it are not.

    Args:
        readme: the text, whose links are relative to the project.
        source: address of the folder with the project's files on the web; None leaves the links.
    """
    if source is None:
        return readme
    return re.sub(r"\]\((?!https?:|#)", f"]({source.rstrip('/')}/", readme)


native = Extension(
    "keras2torch_birnn.rnn.native.libk2t",
    sources=[str(path) for path in sorted(NATIVE.glob("*.cpp"))],
    depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
    define_macros=[("K2T_SOURCE_HASH", f"UINT64_C({PROCESSORS['source_hash'](NATIVE):#x})")],
    language="c++",
    optional=os.environ.get("K2T_REQUIRE_KERNEL") != "1",
)

setup(
    # K2T_SOURCE_URL is for who publishes the package, and knows where its files are.
    long_description=describe_project(
        Path("README.md").read_text(encoding="utf-8"), os.environ.get("K2T_SOURCE_URL")
    ),
    long_description_content_type="text/markdown",
    # Python of 32 bits, or of ARM, on Windows: without the kernel.
    ext_modules=[native] if ZIG_TARGET or sys.platform != "win32" else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": WheelForEveryPython},
)
