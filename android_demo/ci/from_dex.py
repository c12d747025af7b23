"""An APK's classes.dex as classes for a JVM: so that tests run what ships."""

from __future__ import annotations

import struct
import subprocess
import zipfile
from pathlib import Path

# Sizes of the constants of a class file by their tag; texts have their own length.
_SIZES = {3: 5, 4: 5, 5: 9, 6: 9, 7: 3, 8: 3, 9: 5, 10: 5, 11: 5, 12: 5, 15: 4}
_SIZES |= {16: 3, 17: 5, 18: 5, 19: 3, 20: 3}
_INTERFACE = 0x0200


def jvm_classes(apk: Path, out: Path) -> Path:
    """Turns the dex of an APK into a jar, by Debian's enjarify.

    It writes class files of version 49, in which interfaces cannot have methods with a
    body: those get version 52. It writes no stack maps, so that a JVM must run with
    `-XX:-BytecodeVerificationRemote`.
    """
    # By Debian's own Python, whatever else is called python3 here.
    subprocess.run(
        ["/usr/bin/python3", "-O", "-m", "enjarify.main", "-f", "-o", out, apk],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with zipfile.ZipFile(out) as z:
        files = [(name, z.read(name)) for name in z.namelist()]
    with zipfile.ZipFile(out, "w") as z:
        for name, data in files:
            if name.endswith(".class") and _is_interface(data):
                data = data[:4] + struct.pack(">HH", 0, 52) + data[8:]
            z.writestr(name, data)
    return out


def _is_interface(data: bytes) -> bool:
    (count,) = struct.unpack_from(">H", data, 8)
    at, index = 10, 1
    while index < count:
        tag = data[at]
        if tag == 1:
            at += 3 + struct.unpack_from(">H", data, at + 1)[0]
        else:
            at += _SIZES[tag]
        index += 2 if tag in (5, 6) else 1
    return bool(struct.unpack_from(">H", data, at)[0] & _INTERFACE)
