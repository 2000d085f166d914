"""Download packages by the machine's own pip or apt, and unpack files from them.

The machine's own tools follow its configuration: mirrors, proxies, certificates.
"""

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import IO, cast

from tinygrad_peft.errors import FetchError, NetworkError
from tinygrad_peft.files import sha256_of
from tinygrad_peft.models.fetch.artifacts import DebianPackage, Member, Package, PypiPackage

_CHUNK = 1 << 20  # bytes
_DAMAGED = (
    *(OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
    subprocess.CalledProcessError,
)


# ---------- downloading ----------


def download(package: Package, folder: Path) -> Path:
    """Download a package into the empty `folder` and return its file.

    Raises FetchError if pip or apt is missing or fails; its subclass NetworkError if the network
    seems to be the cause.
    """
    if isinstance(package, PypiPackage):
        return _pip_download(package, folder)
    return _apt_download(package, folder)


def _pip_download(package: PypiPackage, folder: Path) -> Path:
    requirement = f"{package.project}=={package.version}"
    # With its hash, so that pip checks a source distribution before it runs any of it.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{package.file.sha256}\n")
    is_wheel = package.file.name.endswith(".whl")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar", "off"),
        *("--only-binary" if is_wheel else "--no-binary", package.project),
        *_resume_option(),
        *("-d", str(folder), "-r", str(requirements)),
    ]
    result = _run(command, folder)
    if result.returncode != 0:
        raise _pip_failure(package, requirement, result.stdout + result.stderr)
    return folder / package.file.name


def _resume_option() -> list[str]:
    try:
        major, minor = map(int, metadata.version("pip").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return []
    return ["--resume-retries", "5"] if (major, minor) >= (25, 1) else []


def _pip_failure(package: PypiPackage, requirement: str, output: str) -> FetchError:
    failed = f"could not download {requirement}"
    if "No module named pip" in output:
        return FetchError(f"{failed}: {sys.executable} has no pip (try: ensurepip)")
    if os.strerror(errno.ENOSPC) in output:
        return FetchError(f"{failed}: {os.strerror(errno.ENOSPC)}")
    got = re.search(r"Got\s+([0-9a-f]{64})", output)
    if got:
        return FetchError(mismatch(package.file.name, package.file.sha256, got[1]))
    return NetworkError(
        f"{failed}: no network, or the package index cannot be reached "
        f"or does not have it. pip says: {_last_error(output, 'ERROR:')}"
    )


def _apt_download(package: DebianPackage, folder: Path) -> Path:
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise FetchError(
            f"{package.project} is a Debian package: it needs a Debian-like system, "
            f"and this one has no {' and no '.join(missing)}"
        )
    result = _run(["apt-get", "download", package.project], folder)
    found = sorted(folder.glob("*.deb"))
    if result.returncode != 0 or len(found) != 1:
        raise NetworkError(
            f"could not download {package.project}: no network, or apt does not know it "
            f"(try: apt-get update). apt says: {_last_error(result.stderr, 'E:')}"
        )
    return found[0]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # Temporary files beside the result: /tmp may be small, and a move is then a rename.
    environment = os.environ | {"TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )


def _last_error(output: str, prefix: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(prefix)]
    return (errors or lines or ["nothing"])[-1]


# ---------- unpacking ----------


def extract(package_file: Path, member: Member, folder: Path) -> None:
    """Write one member of a package into `folder`, under its name in the table.

    Reads no more than the member's known size, whatever the archive claims. Raises FetchError if
    the content differs or the archive is damaged.
    """
    target = folder / member.file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as output:
        for chunk in _read_member(package_file, member):
            output.write(chunk)
            digest.update(chunk)
    if digest.hexdigest() != member.file.sha256:
        target.unlink()
        raise FetchError(mismatch(member.path, member.file.sha256, digest.hexdigest()))


def _read_member(package_file: Path, member: Member) -> Iterator[bytes]:
    left = member.file.size + 1  # one byte more shows that it is too long
    with ExitStack() as stack:
        try:
            stream = _open_member(package_file, member.path, stack)
            while left and (chunk := stream.read(min(left, _CHUNK))):
                left -= len(chunk)
                yield chunk
        except _DAMAGED as error:
            raise FetchError(f"cannot read {member.path} in {package_file}: {error}") from error


def _open_member(package_file: Path, path: str, stack: ExitStack) -> IO[bytes]:
    if package_file.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(package_file)]
        files = subprocess.run(command, check=True, capture_output=True).stdout
        return cast("IO[bytes]", gzip.open(_open_in_tar(io.BytesIO(files), path, stack)))
    outer, _, inner = path.partition("!")
    archive = stack.enter_context(zipfile.ZipFile(package_file))
    stream = stack.enter_context(archive.open(outer))
    return _open_in_tar(stream, inner, stack) if inner else stream


def _open_in_tar(stream: IO[bytes], path: str, stack: ExitStack) -> IO[bytes]:
    archive = tarfile.open(fileobj=stream)  # noqa: SIM115 - the stack closes it
    stack.callback(archive.close)
    member = archive.extractfile(path)
    if member is None:
        raise KeyError(f"{path} is not a file")
    return member


# ---------- checking ----------


def require_same(file: Path, expected: str) -> None:
    """Delete `file` and raise FetchError if its SHA-256 differs."""
    got = sha256_of(file)
    if got != expected:
        file.unlink()
        raise FetchError(f"{mismatch(str(file), expected, got)}; it was deleted")


def mismatch(name: str, expected: str, got: str) -> str:
    """Word an error about a checksum."""
    return f"{name}: expected SHA-256 {expected}, got {got}"
