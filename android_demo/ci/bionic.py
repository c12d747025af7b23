"""Android's own native library on ordinary Linux, see bionic_shim/shim.c."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SHIM = Path(__file__).resolve().parent / "bionic_shim"
# How a symbol is handed on: a jump through the table of addresses, or a branch.
_JUMPS = {"gcc": "jmp *{0}@GOTPCREL(%rip)", "aarch64-linux-gnu-gcc": "b {0}"}


def make_loadable(library: Path, out: Path, compiler: str = "gcc") -> None:
    """Puts a library of Android's beside libraries that it can be loaded with.

    Args:
        library: `libtensorflowlite_jni.so` out of the AAR.
        out: The folder to fill; to be on the loader's path.
        compiler: A C compiler for the library's processor.
    """
    out.mkdir(parents=True, exist_ok=True)
    wrapped = set(re.findall(r"WRAPS\((\w+)\)", (SHIM / "shim.c").read_text()))
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    handed_on = sorted(set(re.findall(r"(\w+)@LIBC\b", undefined)) - wrapped)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind = "%function" if "aarch64" in compiler else "@function"
        lines = [".text"]
        for symbol in handed_on:
            lines += [
                f".globl shim_{symbol}",
                f".type shim_{symbol},{kind}",
                f"shim_{symbol}: {_JUMPS[compiler].format(symbol)}",
                f".symver shim_{symbol},{symbol}@LIBC",
            ]
        note = "%progbits" if "aarch64" in compiler else "@progbits"
        lines += [f'.section .note.GNU-stack,"",{note}', ""]
        (folder / "forward.S").write_text("\n".join(lines))
        (folder / "version.map").write_text("LIBC { global: *; };\n")
        (folder / "empty.c").write_text("int shim_library;\n")

        def link(soname: str, *words: object) -> None:
            subprocess.run(
                [
                    *(compiler, "-O1", "-fPIC", "-shared", "-fno-builtin"),
                    *("-o", out / soname, f"-Wl,-soname,{soname}"),
                    *map(str, words),
                ],
                check=True,
            )

        version = f"-Wl,--version-script={folder / 'version.map'}"
        link(
            "libc.so",
            *(version, SHIM / "shim.c", folder / "forward.S"),
            *("-lm", "-ldl", "-lpthread"),
        )
        link("libm.so", version, folder / "empty.c")
        link("libdl.so", version, folder / "empty.c")
        link("liblog.so", SHIM / "log.c")
    shutil.copyfile(library, out / library.name)
