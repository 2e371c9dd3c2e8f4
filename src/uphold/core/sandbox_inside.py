"""What stands between `uphold.core.sandbox` and a program: it makes the namespaces, then watches the program.

The text of this file is handed to a bare interpreter (`python -c TEXT VERB ...`), so that nothing of a user's machine
has to be visible where it runs. It imports little, and only what starts fast: every program pays for it.

    new_user COMMAND...                           a user namespace with a user of its own, then COMMAND (bubblewrap)
    isolate USER FOLDER_BYTES PATHS COMMAND...    all namespaces and a file system of its own, then COMMAND; USER is
                                                  `own` (for root) or `same`
    watch CHANNEL                                 fork the program, tell CHANNEL how it ended
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import select
import struct
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

INSIDE_ID = 1000
"""User and group of the program, as it sees itself."""
TOKEN_BYTES = 16
READY = b"ready"
HOST = b"sandbox"

# From linux/sched.h, linux/mount.h, linux/prctl.h and linux/fcntl.h; Python has names for them from 3.12 on, or none.
NEW_USER = 0x10000000
NEW_MOUNT, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_PID, NEW_NET = (
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x20000000,
    1 << 30,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    1 << 14,
    1 << 18,
)
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_RECURSIVE, ATTR_RDONLY, ATTR_NOSUID = 442, 0x8000, 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 4, 36, 38, 9
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2

# What namespaces do not hold back: the session's key store, sockets to the host of a virtual machine, memory that no
# limit counts, and parts of the kernel that no honest program needs. By machine: the architecture's number in
# linux/audit.h, the system call `socket`, and the calls that are refused (add_key, request_key, keyctl, shmget,
# memfd_create, bpf, userfaultfd, perf_event_open, io_uring_setup).
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, 41, (248, 249, 250, 29, 319, 321, 323, 298, 425)),
    "aarch64": (0xC00000B7, 198, (217, 218, 219, 194, 279, 280, 282, 241, 425)),
}
SOCKET_FAMILIES = (1, 2, 10, 16)
"""Unix, IPv4, IPv6 and netlink: those that a network namespace holds."""

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | str | bytes | None) -> None:
    """Call a function of the C library that returns 0 when it worked; raises `OSError` otherwise."""
    values = [os.fsencode(value) if isinstance(value, str) else value for value in arguments]
    if getattr(_libc, name)(*[ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_user_namespace(own_user: bool) -> None:
    """Become a user who owns nothing outside, and who cannot make further user namespaces.

    With `own_user`, for root only, a user that nobody else has is mapped for the program: the kernel never holds root
    to its limit of processes, whatever root is called inside. Only a process outside may write such a map, so one is
    forked first.
    """
    maps = {
        kind: f"0 0 1\n{INSIDE_ID} {_unused_id(kind)} 1\n" if own_user else f"{INSIDE_ID} {same} 1\n"
        for kind, same in (("uid", os.geteuid()), ("gid", os.getegid()))
    }
    wait, go = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(go)
        os._exit(_write_maps(os.getppid(), maps, own_user) if os.read(wait, 1) else 1)
    call("unshare", NEW_USER)
    os.write(go, b".")
    os.close(go)
    os.close(wait)
    if os.waitpid(writer, 0)[1] != 0:
        raise OSError("the kernel refuses a user namespace with a user of its own")
    # As root of a further user namespace, a program could mount memory that no limit counts.
    _write("/proc/sys/user/max_user_namespaces", "0")


def _unused_id(kind: str) -> int:
    """A random id from the upper half of the largest range that exists here."""
    with open(f"/proc/self/{kind}_map") as file:
        ranges = [(int(count), int(start)) for start, _, count in map(str.split, file)]
    count, start = max(ranges)
    return start + count // 2 + int.from_bytes(os.urandom(8), "little") % (count - count // 2)


def _write_maps(process: int, maps: dict[str, str], groups: bool) -> int:
    try:
        if not groups:
            _write(f"/proc/{process}/setgroups", "deny")
        for kind, text in maps.items():
            _write(f"/proc/{process}/{kind}_map", text)
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def _write(path: str, text: str) -> None:
    # The kernel takes such a file in one write or not at all.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def isolate(own_user: bool, folder_bytes: int, read_only: list[str], command: list[str]) -> NoReturn:
    """Enter namespaces of every kind and run `command` as their first process, with a /tmp of `folder_bytes`."""
    enter_user_namespace(own_user)
    call("unshare", NEW_MOUNT | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET)
    first = os.fork()
    if first != 0:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("sethostname", HOST, len(HOST))
    _new_root(read_only, folder_bytes)
    os.chdir("/tmp")
    os.execv(command[0], command)


def _new_root(read_only: list[str], folder_bytes: int) -> None:
    """A root file system with nothing in it but `read_only`, four devices, /proc and an own /tmp."""
    os.umask(0o022)
    call("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    call("mount", "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    os.mkdir("/tmp/old")
    call("pivot_root", "/tmp", "/tmp/old")
    os.chdir("/")
    for folder in ("/proc", "/tmp"):
        os.mkdir(folder)
    # A fresh /proc is granted only while the one outside can still be seen.
    call("mount", "proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    call("mount", "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={folder_bytes}")
    for path in read_only:
        _bind(path, ATTR_RDONLY | ATTR_NOSUID)
    for device in ("null", "zero", "random", "urandom"):
        _bind(f"/dev/{device}", 0)
    call("umount2", "/old", MNT_DETACH)
    os.rmdir("/old")
    call("mount", None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, None)


def _bind(path: str, attributes: int) -> None:
    """Show `path` of the old root in the new one, with everything that is mounted below it."""
    if os.path.isdir("/old" + path):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    call("mount", "/old" + path, path, None, MS_BIND | MS_REC, None)
    if attributes:
        values = b"".join(number.to_bytes(8, sys.byteorder) for number in (attributes, 0, 0, 0))
        call("syscall", SYS_MOUNT_SETATTR, -1, path, AT_RECURSIVE, values, len(values))


def watch(channel: int) -> None:
    """Run the program on standard input and say on `channel`: `ready`, then `passed` or `exit CODE`.

    The end of `channel` from the other side ends this process. As the first of its process namespace it takes with
    it whatever the program has started.
    """
    with open(0, "rb", closefd=False) as file:
        request = marshal.load(file)
    if request["isolated"] and os.getpid() != 1:
        raise SystemExit("the watcher is not the first of its process namespace")
    # Neither the program nor what it starts may read this process's memory or descriptors.
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    if not request["isolated"]:
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    key = os.urandom(TOKEN_BYTES)
    (reports, report), (answer, answers) = os.pipe(), os.pipe()
    program = os.fork()
    if program == 0:
        for descriptor in (channel, reports, answers):
            os.close(descriptor)
        run(request, report, answer, key)
    os.close(report)
    os.close(answer)
    if os.read(reports, len(READY)) != READY:
        raise SystemExit("the program cannot be confined")
    os.write(channel, READY + b"\n")
    # Only now: a program that kills its watcher at once must not look like a sandbox that does not come up.
    os.write(answers, READY)
    verdict = await_verdict(program, channel, reports, answers, key)
    if not request["isolated"]:
        clean_up(request["folder"])
    os.write(channel, f"{verdict}\n".encode())


def await_verdict(program: int, channel: int, reports: int, answers: int, key: bytes) -> str:
    """How `program` ended; `stopped` when `channel` was closed first.

    It passed if, having had `key` from the start, it reports `key` and then repeats a second token that did not exist
    before: neither what lies in its memory while it runs nor an echo of what it can read is enough.
    """
    second = os.urandom(TOKEN_BYTES)
    expected = [key, second]
    ended = os.pidfd_open(program)
    poll = select.poll()
    for descriptor in (channel, reports, ended):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if channel in ready:
            return "stopped"
        if reports in ready:
            if os.read(reports, TOKEN_BYTES) != expected.pop(0):
                poll.unregister(reports)
            elif not expected:
                return "passed"
            else:
                try:
                    os.write(answers, second)
                except BrokenPipeError:
                    poll.unregister(reports)
        elif ended in ready:
            return f"exit {os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])}"


def clean_up(folder: str) -> None:
    """Kill whatever the program has started and remove its folder: the best there is without namespaces.

    The watcher inherits the orphans of the processes it kills, so the loop ends when nobody is left.
    """
    import shutil

    while True:
        with open("/proc/thread-self/children") as file:
            for child in file.read().split():
                os.kill(int(child), SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    shutil.rmtree(folder, ignore_errors=True)


def run(request: dict[str, Any], report: int, answer: int, key: bytes) -> NoReturn:
    """Execute the program; `report` that its last statement was reached, and end this process."""
    # Bound now: the program may replace any of these in their modules, or fork and reach its end as its own child.
    write, read, leave, process, own = os.write, os.read, os._exit, os.getpid, os.getpid()
    show, flushes = sys.__excepthook__, (sys.stdout.flush, sys.stderr.flush)
    confine(request)
    write(report, READY)
    read(answer, len(READY))
    try:
        exec(compile(request["code"], "<program>", "exec", dont_inherit=True), _fresh_main())
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is its failure
        show(type(error), error.with_traceback(error.__traceback__ and error.__traceback__.tb_next), None)
        _flush(flushes)
        leave(_exit_code(error))
    else:
        _flush(flushes)
        if process() == own:
            write(report, key)
            write(report, read(answer, TOKEN_BYTES))
        leave(0)


def _flush(flushes: tuple[Callable[[], object], ...]) -> None:
    for flush in flushes:
        try:
            flush()
        except BaseException:  # noqa: BLE001 - the program may have closed its own output
            continue


def _exit_code(error: BaseException) -> int:
    """What the interpreter would exit with after `error`."""
    if not isinstance(error, SystemExit):
        return 1
    return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)


def _fresh_main() -> dict[str, Any]:
    """The name space of a `__main__` module in which nothing of this file is found; random numbers are seeded."""
    import random

    random.seed(0)
    sys.modules["__main__"] = types.ModuleType("__main__")
    return vars(sys.modules["__main__"])


def confine(request: dict[str, Any]) -> None:
    """Take from this process its input, most of its limits, and its user where it has one to change to."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for name, (soft, hard) in request["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        most = sys.maxsize if most == resource.RLIM_INFINITY else most
        resource.setrlimit(kind, (min(soft, most), min(hard, most)))
    try:  # noqa: SIM105 - contextlib starts slowly
        # When memory runs out, this should be the first process to go. A wish only: some systems refuse it.
        _write("/proc/self/oom_score_adj", "1000")
    except OSError:
        pass
    if request["isolated"] and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    if request["isolated"]:
        refuse_system_calls()
    else:
        os.chdir(request["folder"])


def refuse_system_calls() -> None:
    """Have the kernel refuse some system calls of this process and its children; see `SYSTEM_CALLS`.

    The filter is a program for the kernel's packet filter machine (linux/filter.h): 0x20 loads a word of the call
    (0 is its number, 4 the architecture, 16 the first argument), 0x15 and 0x35 jump on equal and on greater or equal,
    6 returns.
    """
    if os.uname().machine not in SYSTEM_CALLS:
        return
    architecture, make_socket, refused = SYSTEM_CALLS[os.uname().machine]
    allow, refuse = (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x00050000 | 1)  # EPERM
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), refuse, (0x20, 0, 0, 0)]
    program += [(0x35, 0, 1, 0x40000000), refuse]  # x32, another set of numbers for the same calls
    for number in refused:
        program += [(0x15, 0, 1, number), refuse]
    program += [(0x15, 1, 0, make_socket), allow, (0x20, 0, 0, 16)]
    for family in SOCKET_FAMILIES:
        program += [(0x15, 0, 1, family), allow]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in [*program, refuse])
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program) + 1, ctypes.addressof(buffer))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)


def main(verb: str, *arguments: str) -> None:
    """Do what the command line says."""
    if verb == "watch":
        watch(int(arguments[0]))
    elif verb == "isolate":
        user, folder_bytes, read_only, *command = arguments
        isolate(user == "own", int(folder_bytes), read_only.split(os.pathsep), command)
    elif verb == "new_user":
        enter_user_namespace(own_user=True)
        os.execv(arguments[0], arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
