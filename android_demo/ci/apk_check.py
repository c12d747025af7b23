"""What an APK asks for and holds, looked at from outside."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

from tools import ChainError, run

MOST_BYTES = 9_000_000
PERMISSIONS = ["android.permission.CAMERA"]
EXPORTED = [".ui.MainActivity"]
LIBRARIES = {
    f"lib/{abi}/libtensorflowlite_jni.so"
    for abi in ("arm64-v8a", "armeabi-v7a", "x86_64")
}


def check(apk: Path) -> None:
    """Raises unless the APK is private, small, whole and signed."""
    run("apksigner", "verify", "--min-sdk-version", 26, apk)
    run("zipalign", "-c", "-p", "4", apk)
    badging = run("aapt", "dump", "badging", apk)
    manifest = run("aapt", "dump", "xmltree", apk, "AndroidManifest.xml")
    asked = re.findall(r"uses-permission: name='([^']+)'", badging)
    _hold("permissions", sorted(set(asked)), PERMISSIONS)
    _hold("exported components", _exported(manifest), EXPORTED)
    _hold("backup", _attribute(manifest, "allowBackup"), "0x0")
    # Only Android's own debug builds have it.
    _hold("debuggable", _attribute(manifest, "debuggable"), "")
    for name, wanted in (("sdkVersion", "26"), ("targetSdkVersion", "35")):
        found = re.findall(rf"^{name}:'(\d+)'", badging, re.MULTILINE)
        _hold(name, found, [wanted])
    with zipfile.ZipFile(apk) as z:
        libraries = {name for name in z.namelist() if name.startswith("lib/")}
        _hold("native libraries", libraries, LIBRARIES)
        stored = z.getinfo("assets/model.tflite").compress_type == zipfile.ZIP_STORED
        _hold("a model stored as it is", stored, True)
    size = apk.stat().st_size
    if size > MOST_BYTES:
        raise ChainError(f"The APK may have {MOST_BYTES:,} bytes. Received: {size:,}.")
    print(f"{apk.name}: {size:,} bytes, permissions {asked}", file=sys.stderr)


def _hold(what: str, received: object, wanted: object) -> None:
    if received != wanted:
        raise ChainError(f"The APK's {what} must be {wanted}. Received: {received}.")


def _attribute(manifest: str, name: str) -> str:
    found = re.search(rf"android:{name}\(0x\w+\)=\(type 0x12\)(0x\w+)", manifest)
    return found[1] if found else ""


def _exported(manifest: str) -> list[str]:
    """Activities, services, receivers and providers that other apps can reach."""
    exported = []
    component = r"^ *E: (?:activity|activity-alias|service|receiver|provider) .*\n"
    for block in re.split(component, manifest, flags=re.MULTILINE)[1:]:
        # Up to the next element: what is below belongs to filters.
        own = re.split(r"^ *E: ", block, maxsplit=1, flags=re.MULTILINE)[0]
        name = re.search(r'android:name\(0x\w+\)="([^"]+)"', own)
        value = re.search(r"android:exported\(0x\w+\)=\(type 0x12\)(0x\w+)", own)
        if name is None or value is None or int(value[1], 16):
            exported.append(name[1] if name else "a component without a name")
    return exported
