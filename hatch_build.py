"""Builds the optional extension `normtrain.kernels._native` while pip builds the package.

    python hatch_build.py       # in place, for a checkout

Without a C++ compiler or Python's headers the package is built without it, and says so in a line;
its norms then run by PyTorch's operations. ``CXX`` names the compiler, ``CXXFLAGS`` adds options,
``NORMTRAIN_NATIVE=0`` leaves the extension out and ``NORMTRAIN_NATIVE=1`` makes a failure an error.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "normtrain" / "kernels" / "csrc"
TARGET = ROOT / "normtrain" / "kernels" / "_native.abi3.so"
LEAST_PYTHON = (3, 11)

FLAGS = [
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    # errno and floating-point traps would keep roots and choices from being vectorised
    *("-fno-math-errno", "-fno-trapping-math"),
    f"-DPy_LIMITED_API=0x{LEAST_PYTHON[0]:02x}{LEAST_PYTHON[1]:02x}0000",
]

# each instruction set: floats in a vector, and the compiler's options
ISAS = {"base": (4, [])}
X86_ISAS = {
    "avx2": (8, ["-mavx2", "-mfma", "-mf16c"]),
    "avx512": (
        16,
        ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    ),
}


class NotBuiltError(Exception):
    """Why there is no extension, in a line."""


def compiler() -> list[str]:
    """The command of a C++ compiler.

    Raises:
        NotBuiltError: there is none.
    """
    named = os.environ.get("CXX")
    for command in [named] if named else ["c++", "g++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise NotBuiltError(f"no C++ compiler ({named or 'c++, g++, clang++'}) is on the PATH")


def run(command: list[str]) -> None:
    """Run a step of the build.

    Raises:
        NotBuiltError: it failed; the first error is in the message.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [
            "no reason given"
        ]
        raise NotBuiltError(f"{command[0]} failed: {lines[0].strip()}")


def build(target: Path = TARGET) -> Path:
    """Compile the extension.

    Returns:
        Where it is.

    Raises:
        NotBuiltError: it can't be built here.
    """
    if os.name != "posix":
        raise NotBuiltError("its build is written for GCC and Clang on Linux and macOS")
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        raise NotBuiltError("Python.h is missing (Debian and Ubuntu: apt install python3-dev)")
    cxx, extra = compiler(), shlex.split(os.environ.get("CXXFLAGS", ""))
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    isas = ISAS | (X86_ISAS if x86 else {})
    with tempfile.TemporaryDirectory() as folder:
        steps = {"module": [str(SOURCES / "module.cpp"), "-O3", f"-I{include}"]}
        for name, (lanes, options) in isas.items():
            steps[name] = [str(SOURCES / "rows.cpp"), *options, f"-DLANES={lanes}", f"-DISA={name}"]
        objects = [f"{folder}/{name}.o" for name in steps]
        commands = [
            [*cxx, *FLAGS, *extra, *words, "-c", "-o", made]
            for words, made in zip(steps.values(), objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands))
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        made = Path(folder) / target.name
        run([*cxx, *(shared or ["-shared"]), *extra, *objects, "-o", str(made), "-ldl"])
        # a running process may hold the old one: replaced, not written over
        temporary = target.with_suffix(".new")
        shutil.copy2(made, temporary)
        temporary.replace(target)
    return target


def tag() -> str:
    """The wheel's tag: CPython's stable interface from 3.11 on, and this platform."""
    system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"cp{LEAST_PYTHON[0]}{LEAST_PYTHON[1]}-abi3-{system}"


def added(build_data: dict[str, Any]) -> str:
    """Build the extension and put it into a wheel, or leave both.

    Returns:
        What was done, in a line.

    Raises:
        NotBuiltError: ``NORMTRAIN_NATIVE=1`` asks for it and it can't be built.
    """
    wish = os.environ.get("NORMTRAIN_NATIVE", "")
    if wish == "0":
        TARGET.unlink(missing_ok=True)
        return "normtrain: built without the native norm kernels, as NORMTRAIN_NATIVE=0 asks"
    try:
        build()
    except NotBuiltError as error:
        if wish == "1":
            raise
        TARGET.unlink(missing_ok=True)
        return f"normtrain: built without the native norm kernels: {error}"
    build_data["pure_python"] = False
    build_data["tag"] = tag()
    build_data["artifacts"].append(f"/{TARGET.relative_to(ROOT).as_posix()}")
    return "normtrain: native norm kernels built"


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    pass
else:

    class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
        """Hatchling's hook."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Build before the files are collected; a source archive holds no extension."""
            if self.target_name == "wheel":
                self.app.display_info(added(build_data))


if __name__ == "__main__":
    print(build())
