"""What a test's processes hold beyond resident pages: files, shared memory without pages of anyone's, buffers.

A page that several processes map counts once (proportional sizes). Shared anonymous memory stays when its pages leave
every page table (MADV_DONTNEED), so it is counted by its object; a tmpfs counts as a whole, mapped or not; a socket
counts with what its buffers may hold, since what lies in them is in no process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from verifier_app.judge.procfs import listing, read, read_all

FREE_SOCKETS = 64  # of the whole tree; an event loop has 2
MAX_LOOSE_FILES = 65_536  # what the private root's tmpfs holds too
MAX_DEPTH = 64
REREAD = 10  # looks after which a process's mappings are read again although its size is the same
SHARES_KNOWN = os.path.exists("/proc/self/smaps_rollup")  # not in gVisor: there its absence is no sign of an end
_SHARED_ZERO = b"/dev/zero (deleted)"  # how the kernel names shared anonymous memory


def _socket_bytes() -> int:
    """What a socket's buffer may hold: programs cannot change it (seccomp.py)."""
    try:
        with open("/proc/sys/net/core/wmem_default") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 212_992


SOCKET_BYTES = _socket_bytes()


def own_bytes(path: int | str, proc: int, files: bool = True) -> int:
    """Proportional memory of a process without shared memory, swapped pages included; files: and with mapped files.

    Raises:
        FileNotFoundError, ProcessLookupError: it is gone.
        OSError: the kernel does not say.
    """
    found = {}
    for line in read(f"{path}/smaps_rollup", proc).splitlines()[1:]:
        name, _, value = line.partition(b":")
        found[name] = int(value.split()[0]) << 10
    left_out = found.get(b"Pss_Shmem", 0) + (0 if files else found.get(b"Pss_File", 0))
    return found[b"Pss"] - left_out + found.get(b"SwapPss", 0)


def socket_bytes(proc: int, paths: Iterable[str], own_network: bool) -> int:
    """The buffers of all sockets beyond FREE_SOCKETS; in a network namespace of its own those in flight too."""
    if own_network:
        for path in paths:
            try:
                count = read_all(f"{path}/net/unix", proc).count(b"\n") - 1
            except OSError:
                continue
            return max(0, count - FREE_SOCKETS) * SOCKET_BYTES
        return 0
    inodes = set()
    for path in paths:
        try:
            for name in listing(f"{path}/fd", proc):
                target = os.readlink(f"{path}/fd/{name}", dir_fd=proc)
                if target.startswith("socket:"):
                    inodes.add(target)
        except OSError:
            continue
    return max(0, len(inodes) - FREE_SOCKETS) * SOCKET_BYTES


class Hidden:
    """Shared anonymous memory and page tables, looked for in processes that map more than they have resident."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, int, dict[bytes, list[tuple[bytes, int]]]]] = {}

    def bytes(self, proc: int, sizes: dict[str, bytes]) -> int:
        """What these processes, each its path in /proc, hold so. Another address space tells that mappings changed."""
        objects: dict[bytes, tuple[str, bytes, int]] = {}
        total = 0
        self._known = {pid: known for pid, known in self._known.items() if pid in sizes}
        for pid, size in sizes.items():
            known = self._known.get(pid)
            if known is None or known[0] != size or known[1] <= 0:
                try:
                    mappings = _shared_mappings(read_all(f"{pid}/maps", proc))
                except OSError:
                    continue
                known = size, REREAD, mappings
            self._known[pid] = known[0], known[1] - 1, known[2]
            total += _page_table_bytes(pid, proc)
            for inode, ranges in known[2].items():
                mapped = sum(length for _, length in ranges)
                if inode not in objects or objects[inode][2] < mapped:
                    objects[inode] = pid, ranges[0][0], mapped
        for pid, where, mapped in objects.values():
            try:  # exact, with the rights for it: the object's pages, whoever maps them
                total += os.stat(f"{pid}/map_files/{where.decode()}", dir_fd=proc).st_blocks * 512
            except (FileNotFoundError, ProcessLookupError):
                if "/" in pid:  # a thread without its process's main one: it has no such folder
                    total += mapped
                self._known.pop(pid, None)
            except OSError:
                total += mapped
        return total


def _shared_mappings(maps: bytes) -> dict[bytes, list[tuple[bytes, int]]]:
    """Of /proc/PID/maps: inode -> (range, length) of each shared anonymous mapping."""
    found: dict[bytes, list[tuple[bytes, int]]] = {}
    if _SHARED_ZERO not in maps:
        return found
    for line in maps.splitlines():
        if line.endswith(_SHARED_ZERO):
            where, _, _, _, inode, *_ = line.split()
            start, end = (int(part, 16) for part in where.split(b"-"))
            # map_files names its entries without leading zeros
            found.setdefault(inode, []).append((b"%x-%x" % (start, end), end - start))
    return found


def _page_table_bytes(pid: str, proc: int) -> int:
    try:
        for line in read(f"{pid}/status", proc).splitlines():
            if line.startswith(b"VmPTE:"):
                return int(line.split()[1]) << 10
    except (OSError, IndexError, ValueError):
        pass
    return 0


class Loose:
    """Files of a program without a private root: in its scratch folder, in the host's shared ones, open or mapped.

    uid: whose files in the shared folders count; since: seconds since the epoch, files changed before are not its own.
    """

    def __init__(self, folder: str, shared: list[str], uid: int, since: float) -> None:
        self.folder, self.shared, self.uid, self.since = folder, shared, uid, since
        self._devices = set()
        for path in (folder, *shared):
            try:
                self._devices.add(os.stat(path).st_dev)
            except OSError:
                continue

    def bytes(self, proc: int, pids: Iterable[str]) -> int:
        """Their sizes on disk, each file once. More than MAX_LOOSE_FILES, or deeper ones, are more than any limit."""
        found: dict[tuple[int, int], int] = {}
        for number, path in enumerate((self.folder, *self.shared)):
            if not self._walk(path, -1, found, MAX_DEPTH, own=number == 0):
                return 1 << 62
        for pid in pids:
            for kind in ("fd", "map_files"):
                self._held(pid, proc, kind, found)
        return sum(found.values())

    def _note(self, status: os.stat_result, found: dict[tuple[int, int], int]) -> None:
        found[status.st_dev, status.st_ino] = status.st_blocks * 512

    def _mine(self, status: os.stat_result) -> bool:
        return status.st_uid == self.uid and status.st_ctime >= self.since

    def _walk(self, path: str, dir_fd: int, found: dict[tuple[int, int], int], depth: int, own: bool) -> bool:
        """Below a folder, without following links; False: there is too much."""
        if depth == 0:
            return False
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags) if dir_fd < 0 else os.open(path, flags, dir_fd=dir_fd)
        except OSError:
            return True
        try:
            for name in os.listdir(fd):
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    continue
                if not own and not self._mine(status):
                    continue
                self._note(status, found)
                if len(found) > MAX_LOOSE_FILES:
                    return False
                if stat.S_ISDIR(status.st_mode) and not self._walk(name, fd, found, depth - 1, True):
                    return False
        except OSError:
            pass
        finally:
            os.close(fd)
        return True

    def _held(self, pid: str, proc: int, kind: str, found: dict[tuple[int, int], int]) -> None:
        """Regular files that a process has open or mapped, whether they still have a name or not."""
        try:
            names = listing(f"{pid}/{kind}", proc)
        except OSError:
            return
        for name in names:
            try:
                status = os.stat(f"{pid}/{kind}/{name}", dir_fd=proc)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_dev in self._devices and self._mine(status):
                self._note(status, found)
