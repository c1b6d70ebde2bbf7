"""Fetch the browser libraries that the site serves itself into book/_static/vendor, and check each byte.

usage: python scripts/vendor_js.py [--accept]

The packages come from npm (`npm pack`). versions.json beside the files holds the versions and the SHA-256 of
every file; a file that differs from it is refused. After changing a version, --accept writes the new sums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parents[1] / "book" / "_static" / "vendor"
VERSIONS = VENDOR / "versions.json"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(package: str, version: str, folder: Path) -> Path:
    """The package's archive, as npm hands it out."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not on the PATH; install Node.js, or keep the files that are there")
    command = [npm, "pack", "--silent", f"{package}@{version}"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / f"{package}-{version}.tgz"


def members(archive: Path, wanted: dict[str, str]) -> dict[str, bytes]:
    """The wanted files of an archive: name in the archive -> name here."""
    contents = {}
    with tarfile.open(archive) as tar:
        for source, name in wanted.items():
            file = tar.extractfile(f"package/{source}")
            if file is None:
                raise SystemExit(f"{archive.name} holds no file {source}")
            # The map beside a minified file is not served; a browser's tools would ask for it in vain.
            contents[name] = b"\n".join(
                line for line in file.read().split(b"\n") if not line.startswith(b"//# sourceMappingURL=")
            )
    return contents


def differences(versions: dict[str, Any], contents: dict[str, bytes]) -> list[str]:
    """The names whose content is not what versions.json promises."""
    promised = {
        name: entry["sha256"] for package in versions.values() for name, entry in package["files"].items()
    }
    return [name for name, content in contents.items() if sha256(content) != promised[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--accept", action="store_true", help="write the new SHA-256 sums into versions.json")
    arguments = parser.parse_args()
    versions = json.loads(VERSIONS.read_text(encoding="utf-8"))
    contents: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for package, entry in versions.items():
            archive = fetch(package, entry["version"], Path(folder))
            contents |= members(archive, {file["source"]: name for name, file in entry["files"].items()})
    if (changed := differences(versions, contents)) and not arguments.accept:
        print(f"refused, the content is not the recorded one: {', '.join(changed)}", file=sys.stderr)
        return 1
    for name, content in contents.items():
        (VENDOR / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
    for entry in versions.values():
        for name, file in entry["files"].items():
            file["sha256"] = sha256(contents[name])
    VERSIONS.write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
