"""What differs between systems: children and their end, memory, cores; and that no other file knows such things."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from slm_local import system
from slm_local.system import memory, processes, processor

ROOM = Path(system.__file__).parent
PACKAGE = ROOM.parent
OTHER_FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != ROOM)

ONE_SYSTEM_MODULES = frozenset(
    {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "msvcrt", "winreg", "winsound", "_winapi"}
)
ONE_SYSTEM_NAMES = {
    "os": frozenset(
        {"fork", "forkpty", "kill", "killpg", "setsid", "setpgid", "setpgrp", "getpgid", "getpgrp", "getuid", "geteuid"}
        | {"getgid", "getloadavg", "mkfifo", "nice", "openpty", "sched_getaffinity", "sched_setaffinity", "startfile"}
        | {"uname", "wait", "waitid", "wait3", "wait4", "WNOHANG", "O_BINARY", "statvfs", "sysconf"}
    ),
    "signal": frozenset(
        {"SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGTSTP", "SIGQUIT"}
        | {"SIGPIPE", "SIGWINCH", "SIGBREAK", "CTRL_C_EVENT", "CTRL_BREAK_EVENT"}
        | {"alarm", "pause", "setitimer", "sigwait", "pthread_kill", "pthread_sigmask"}
    ),
    "subprocess": frozenset({"CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW", "STARTUPINFO"}),
    "ctypes": frozenset({"windll", "WinDLL", "oledll"}),
}
ONE_SYSTEM_FOLDERS = ("/proc", "/sys/", "/dev/", "/etc/", "/tmp", "/var/")

TREE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
{then}
"""


def one_system_names(tree: ast.AST) -> Iterator[str]:
    """Find what only some systems have: imports, attributes of modules, folders in strings other than docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name in ONE_SYSTEM_MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                known = ONE_SYSTEM_NAMES.get(module, frozenset())
                yield from (f"{module}.{each.name}" for each in names if each.name in known)
                if module in ONE_SYSTEM_MODULES:
                    yield module
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in ONE_SYSTEM_NAMES.get(module, ()):
                yield f"{module}.{name}"
            case ast.Constant(value=str(text)) if text.startswith(ONE_SYSTEM_FOLDERS) and id(node) not in docstrings:
                yield text


@pytest.mark.parametrize("path", OTHER_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_room_system_knows_what_one_system_has(path: Path) -> None:
    assert list(one_system_names(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import fcntl",
        "from resource import getrlimit",
        "from signal import SIGKILL",
        "import os\nos.killpg(1, 9)",
        "import signal\nsignal.signal(signal.SIGHUP, None)",
        "def f():\n    import termios",
        "open('/proc/self/status')",
        "import ctypes\nctypes.windll.kernel32",
    ],
)
def test_the_search_for_such_names_finds_them(code: str) -> None:
    assert list(one_system_names(ast.parse(code)))


def test_the_search_finds_what_the_room_system_holds() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in ROOM.glob("*.py")]
    found = {name for tree in trees for name in one_system_names(tree)}
    assert {"os.killpg", "signal.SIGKILL", "resource", "/sys/devices", "subprocess.CREATE_NO_WINDOW"} <= found


def spawn(then: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """Start a child that starts a child, and return both."""
    child = subprocess.Popen(
        [sys.executable, "-c", TREE.format(then=then)], stdout=subprocess.PIPE, **system.spawn_options()
    )
    assert child.stdout is not None
    grandchild = psutil.Process(int(child.stdout.readline()))
    child.stdout.close()
    return child, grandchild


def is_gone(process: psutil.Process) -> bool:
    """Wait at most a minute for a process that is no child of ours to die, be it as a zombie of its parent."""
    for _ in range(1200):
        try:
            process.wait(0.05)
        except psutil.TimeoutExpired:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    return True
        else:
            return True
    return False


def test_killing_a_child_kills_what_it_started() -> None:
    child, grandchild = spawn("time.sleep(600)")
    assert system.kill_tree(child)
    assert child.returncode is not None
    assert is_gone(grandchild)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no group of a dead process")
def test_what_a_dead_child_started_is_killed_too() -> None:
    child, grandchild = spawn("sys.exit(3)")
    assert child.wait(60) == 3
    assert system.kill_tree(child)
    assert is_gone(grandchild)


def test_killing_twice_is_no_fault() -> None:
    child, _ = spawn("time.sleep(600)")
    assert system.kill_tree(child)
    assert system.kill_tree(child)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_a_child_in_our_own_group_dies_alone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert system.kill_tree(child)
    assert child.returncode == -signal.SIGKILL


def test_the_way_of_windows_kills_descendants_by_their_ids() -> None:
    child, grandchild = spawn("time.sleep(600)")
    processes._kill_descendants(child.pid)
    assert is_gone(grandchild)
    assert system.kill_tree(child)
    processes._kill_descendants(child.pid)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_a_child_has_a_group_of_its_own() -> None:
    child, _ = spawn("time.sleep(600)")
    assert os.getpgid(child.pid) == child.pid != os.getpgrp()
    system.kill_tree(child)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_a_child_that_ignores_interrupts_lives_on() -> None:
    code = "from slm_local import system; system.ignore_interrupts(); print(flush=True); input(); print('alive')"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    assert child.communicate(b"\n")[0].strip() == b"alive"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows writes no core files")
def test_core_files_are_off_after_restricting_them() -> None:
    code = "from slm_local import system; system.restrict_core_dumps(); import resource as r; print(r.getrlimit(4)[0])"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == "0"


@pytest.mark.parametrize(
    ("returncode", "says"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-9, "killed by signal SIGKILL (9), likely out of memory"),
        (-11, "killed by signal SIGSEGV (11)"),
        (-6, "killed by signal SIGABRT (6), the engine gave up"),
        (-4, "killed by signal SIGILL (4), this processor lacks an instruction that the engine was built for"),
        (-200, "killed by signal 200"),
        (0xC0000005, "died with 0xC0000005 (access violation)"),
        (0xC0000017, "died with 0xC0000017 (out of memory)"),
        (0xC0FFEE00, "died with 0xC0FFEE00 (unknown status)"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other numbers of signals")
def test_the_end_of_a_process_is_told_in_words(returncode: int, says: str) -> None:
    assert system.describe_exit(returncode) == says


def test_the_peak_is_at_least_what_is_held_now() -> None:
    held = bytearray(os.urandom(1 << 20) * 40)
    assert system.own_peak_rss_bytes() >= len(held)
    if sys.platform != "darwin":
        assert (system.peak_rss_bytes(os.getpid()) or 0) >= len(held)


def test_the_peak_of_a_process_that_is_gone_is_not_known() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert system.peak_rss_bytes(child.pid) is None


def write_process(proc: Path, pid: int, parent: int, name: str, anonymous_kib: int | None, program: str | None) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    held = f"VmRSS:\t999999999 kB\nRssAnon:\t {anonymous_kib} kB\n" if anonymous_kib is not None else ""
    (folder / "status").write_text(f"Name:\t{name}\nPPid:\t{parent}\n{held}")
    if program is not None:
        (folder / "exe").symlink_to(program)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such links")
def test_processes_of_one_program_count_together_and_our_own_not_at_all(tmp_path: Path) -> None:
    write_process(tmp_path, 1, 0, "init", 5_000, None)
    write_process(tmp_path, 2, 0, "kthreadd", None, None)
    write_process(tmp_path, 20, 1, "firefox", 1_000_000, "/usr/lib/firefox/firefox")
    write_process(tmp_path, 21, 20, "Isolated Web Co", 1_800_000, "/usr/lib/firefox/firefox (deleted)")
    write_process(tmp_path, 30, 1, "editor", 2_000_000, "/usr/bin/editor")
    write_process(tmp_path, 40, 30, "slm", 100_000, "/usr/bin/python3")
    write_process(tmp_path, 41, 40, "python3", 9_000_000, "/usr/bin/python3")
    (tmp_path / "50").mkdir()  # ended meanwhile
    processes = memory._linux_processes(tmp_path)
    assert memory._largest(processes, 40) == system.Program(name="firefox", held_bytes=2_800_000 * 1024)
    assert memory._largest(processes, 99) == system.Program(name="python3", held_bytes=9_100_000 * 1024)


def test_where_nobody_tells_no_program_is_named() -> None:
    assert memory._largest((), 1) is None


def test_the_program_that_holds_most_is_looked_for_on_every_system() -> None:
    held = {each.pid: each for each in memory._processes()}
    assert held[os.getpid()].held_bytes > 2**20
    largest = system.largest_program()
    assert largest is None or (largest.name and largest.held_bytes > 0)


def test_memory_that_is_free_is_part_of_all_memory() -> None:
    assert 0 <= system.available_memory_bytes() <= system.total_memory_bytes()
    assert system.total_memory_bytes() <= psutil.virtual_memory().total


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_on_the_address_space_bounds_the_memory() -> None:
    limit = 1 << 30
    code = (
        f"import resource as r; r.setrlimit(r.RLIMIT_AS, ({limit}, r.getrlimit(r.RLIMIT_AS)[1]));"
        "from slm_local import system; print(system.available_memory_bytes(), system.total_memory_bytes())"
    )
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    available, total = map(int, subprocess.check_output([sys.executable, "-c", code], env=env).split())
    assert available <= total <= limit


def test_control_groups_bound_the_memory_with_what_they_can_give_back(tmp_path: Path) -> None:
    group = tmp_path / "user" / "app"
    group.mkdir(parents=True)
    (tmp_path / "user" / "memory.max").write_text("4000\n")
    (tmp_path / "user" / "memory.current").write_text("3000\n")
    (tmp_path / "user" / "memory.stat").write_text("anon 2000\ninactive_file 600\n")
    (group / "memory.max").write_text("max\n")
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/other\n0::/user/app\n")

    assert memory._group_limits(membership, tmp_path) == [(4000, 2400)]
    assert memory._group_limits(tmp_path / "nowhere", tmp_path) == []


def machine(root: Path, siblings: list[str], capacities: list[int] | None = None, strong: str | None = None) -> Path:
    """Write what a Linux kernel says of its processors below /sys/devices."""
    for cpu, listed in enumerate(siblings):
        folder = root / "system" / "cpu" / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology" / "thread_siblings_list").write_text(f"{listed}\n")
        if capacities:
            (folder / "cpu_capacity").write_text(f"{capacities[cpu]}\n")
    if strong is not None:
        (root / "cpu_core").mkdir()
        (root / "cpu_core" / "cpus").write_text(f"{strong}\n")
    return root


@pytest.mark.parametrize(
    ("siblings", "capacities", "strong", "usable", "cores"),
    [
        (["0", "1"], None, None, {0, 1}, (2, 0)),
        (["0,2", "1,3", "0,2", "1,3"], None, None, {0, 1, 2, 3}, (2, 0)),
        (["0-1", "0-1", "2-3", "2-3"], None, None, {0, 1}, (1, 0)),
        (["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"], None, "0-3", set(range(8)), (2, 4)),
        (["0-1", "0-1", "2", "3"], None, "0-1", {2, 3}, (2, 0)),
        (["0", "1", "2", "3"], [1024, 1000, 400, 400], None, {0, 1, 2, 3}, (2, 2)),
        (["0", "1", "2", "3"], [1024, 1000, 400, 400], None, {2, 3}, (2, 0)),
    ],
)
def test_cores_are_counted_once_and_by_kind(
    siblings: list[str],
    capacities: list[int] | None,
    strong: str | None,
    usable: set[int],
    cores: tuple[int, int],
    tmp_path: Path,
) -> None:
    assert processor._linux_cores(machine(tmp_path, siblings, capacities, strong), usable) == cores


def test_a_kernel_that_tells_nothing_of_its_cores_is_asked_no_further(tmp_path: Path) -> None:
    assert processor._linux_cores(tmp_path, {0, 1}) == (0, 0)


def test_caches_of_the_highest_level_are_added_up_once_each(tmp_path: Path) -> None:
    for cpu, third in enumerate(("0-1", "0-1", "2-3", "2-3")):
        for index, (level, size, sharing) in enumerate((("2", "512K", str(cpu)), ("3", "16384K", third))):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in (("level", level), ("size", size), ("shared_cpu_list", sharing)):
                (folder / name).write_text(value + "\n")
    (tmp_path / "cpu4" / "cache" / "index0").mkdir(parents=True)
    assert processor._linux_cache_bytes(tmp_path) == 2 * 16384 * 1024
    assert processor._linux_cache_bytes(tmp_path / "nowhere") == 0


def test_there_is_at_least_one_core_and_none_beyond_the_processors() -> None:
    assert 1 <= system.physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows inherits such rights")
def test_a_locked_down_file_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch(0o644)
    system.lock_down_file(file)
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_processor_has_a_name() -> None:
    assert system.cpu_name().strip()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its processor's features")
def test_linux_lists_what_its_processor_can_do() -> None:
    assert len(system.cpu_flags() or ()) > 5
