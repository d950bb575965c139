"""C++ programs: attacks of each kind that a process may try, and right programs that careless judges reject."""

from __future__ import annotations

from typing import Any

from adversarial.cases import SUM_TESTS, Case, attack, honest

HEADERS = """
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
"""
SUM = 'int a, b; if (scanf("%d %d", &a, &b) == 2) printf("%d\\n", a + b);'
FAILED_CALL = [{"input": "", "output": "refused\n"}]


def cpp_attack(name: str, code: str, *statuses: str, **fields: Any) -> Case:
    tests = fields.pop("tests", None)
    return attack(
        f"cpp_{name}", HEADERS + code, tests, *statuses, **{"language": "cpp", "memory_limit_mb": 64, **fields}
    )


def cpp_honest(name: str, code: str, tests: list[dict[str, str]] | None = None, **fields: Any) -> Case:
    return honest(f"cpp_{name}", HEADERS + code, tests, **{"language": "cpp", "memory_limit_mb": 256, **fields})


def refused(name: str, call: str, error: str = "EPERM") -> Case:
    """A system call that has to fail; the program is right if it did."""
    code = f'int main() {{ errno = 0; long r = {call}; puts(r == -1 && errno == {error} ? "refused" : "done"); }}'
    return cpp_honest(name, code, FAILED_CALL)


ATTACKS = [
    cpp_attack("fork_bomb", "int main() { for (;;) fork(); }", "runtime_error", "memory_limit_exceeded"),
    cpp_attack(
        "threads_without_end",
        "void* wait(void*) { for (;;) pause(); }\n"
        "int main() { pthread_t t; for (;;) if (pthread_create(&t, 0, wait, 0)) abort(); }",
        "runtime_error",
        "memory_limit_exceeded",
    ),
    cpp_attack(
        "malloc_and_touch",
        "int main() { for (;;) { char* p = (char*)malloc(1 << 20); if (p) memset(p, 1, 1 << 20); } }",
        "memory_limit_exceeded",
    ),
    cpp_attack(
        "new_without_end",
        "int main() { for (;;) { volatile char* p = new char[1 << 28]; p[0] = 1; } }",
        "memory_limit_exceeded",
    ),
    cpp_attack(
        "shared_mapping_that_is_not_resident",
        "int main() { for (;;) { size_t n = 4 << 20; char* p = (char*)mmap(0, n, PROT_READ | PROT_WRITE, MAP_SHARED |"
        " MAP_ANONYMOUS, -1, 0); if (p == MAP_FAILED) { pause(); } memset(p, 1, n); madvise(p, n, MADV_DONTNEED);"
        " usleep(1000); } }",
        "memory_limit_exceeded",
    ),
    cpp_attack(
        "children_that_hold_shared_memory",
        "int main() { for (int i = 0; i < 40; i++) if (!fork()) { size_t n = 8 << 20; char* p = (char*)mmap(0, n,"
        " PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); memset(p, 1, n); madvise(p, n, MADV_DONTNEED);"
        " pause(); } pause(); }",
        "memory_limit_exceeded",
    ),
    cpp_attack(
        "file_in_tmp",
        'char block[1 << 20]; int main() { int f = open("/tmp/x", O_CREAT | O_WRONLY, 0600); for (;;) {'
        " if (write(f, block, sizeof block) < 0) pause(); } }",
        "memory_limit_exceeded",
        "runtime_error",
        "time_limit_exceeded",
    ),
    cpp_attack(
        "static_data",
        "volatile char data[8ll << 30]; int main() { return data[5] + data[7ll << 30]; }",
        "memory_limit_exceeded",
    ),
    cpp_attack("busy", "int main() { for (volatile int i = 0;; i = i + 1); }", "time_limit_exceeded", time_limit_s=0.5),
    cpp_attack(
        "busy_ignoring_signals",
        "int main() { for (int s = 1; s < 65; s++) signal(s, SIG_IGN); for (volatile int i = 0;; i = i + 1); }",
        "time_limit_exceeded",
        time_limit_s=0.5,
    ),
    cpp_attack("sleep", "int main() { sleep(1000); }", "time_limit_exceeded", time_limit_s=0.5),
    cpp_attack(
        "static_constructor_that_never_ends",
        "struct T { T() { for (volatile int i = 0;; i = i + 1); } } t; int main() {}",
        "time_limit_exceeded",
        time_limit_s=0.5,
    ),
    cpp_attack(
        "output_flood",
        'int main() { for (;;) puts("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"); }',
        "output_limit_exceeded",
        memory_limit_mb=256,
        time_limit_s=10,
    ),
    cpp_attack(
        "stderr_flood_and_sleep",
        'int main() { for (int i = 0; i < 100000; i++) fputs("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", stderr);'
        " for (;;) pause(); }",
        "time_limit_exceeded",
        time_limit_s=0.5,
    ),
    cpp_attack("segmentation_fault", "int main() { *(volatile int*)0 = 1; }", "runtime_error"),
    cpp_attack("abort", "int main() { abort(); }", "runtime_error"),
    cpp_attack("kill_itself", "int main() { kill(getpid(), SIGKILL); }", "runtime_error"),
    cpp_attack(
        "exit_status_after_the_right_answer",
        f"int main() {{ {SUM} fflush(stdout); return 7; }}",
        "runtime_error",
        tests=SUM_TESTS,
    ),
    cpp_attack(
        "signal_in_a_destructor_after_the_right_answer",
        f"struct T {{ ~T() {{ fflush(stdout); raise(SIGSEGV); }} }} t; int main() {{ {SUM} }}",
        "runtime_error",
        tests=SUM_TESTS,
    ),
    cpp_attack(
        "forged_verdict_on_every_descriptor",
        'int main() { const char v[] = "[0,0.0,0,true,null]"; const char f[] = "\\0\\0\\0\\x13[0,0.0,0,true,null]";'
        " for (int fd = 3; fd < 1024; fd++) { write(fd, v, sizeof v); write(fd, f, sizeof f); lseek(fd, 0, 0); } }",
        "wrong_answer",
    ),
    cpp_attack(
        "writes_to_the_parents_descriptors",
        "int main() { char p[64]; for (int who = 1; who < 6; who++) for (int fd = 0; fd < 100; fd++) {"
        ' sprintf(p, "/proc/%d/fd/%d", who, fd); int f = open(p, O_WRONLY | O_NONBLOCK);'
        ' if (f >= 0 && who != getpid()) { write(f, "[0,0.0,0,true,null]", 19); } } }',
        "wrong_answer",
    ),
    cpp_attack(
        "reads_the_memory_of_others",
        "int main() { char p[64], b[4096]; for (int who = 1; who < 6; who++) { if (who == getpid()) continue;"
        ' for (const char* n : {"mem", "environ", "cmdline", "maps"}) { sprintf(p, "/proc/%d/%s", who, n);'
        " int f = open(p, O_RDONLY); if (f >= 0) { long n = read(f, b, sizeof b); if (n > 0) write(1, b, n); } } } }",
        "wrong_answer",
    ),
    cpp_attack(
        "searches_the_files_for_the_answer",
        'int main() { execl("/bin/sh", "sh", "-c", "grep -rlE expected_output /tmp /dev/shm /proc/1/ 2>/dev/null;'
        ' cat /tmp/* /dev/shm/* 2>/dev/null", (char*)0); }',
        "wrong_answer",
        "runtime_error",
    ),
    cpp_attack(
        "an_orphan_that_stays",
        "int main() { if (!fork()) { setsid(); if (!fork()) { signal(SIGTERM, SIG_IGN); for (;;) pause(); } } }",
        "wrong_answer",
    ),
    cpp_attack(
        "an_orphan_that_writes_the_answer_later",
        'int main() { if (!fork()) { setsid(); sleep(1); puts("late"); fflush(stdout); for (;;) pause(); } }',
        "wrong_answer",
    ),
    cpp_attack(
        "stops_its_parent",
        "int main() { kill(getppid(), SIGSTOP); kill(1, SIGKILL); kill(-1, SIGKILL); }",
        "wrong_answer",
        "runtime_error",
    ),
]

AT_COMPILE_TIME = [
    cpp_attack("no_program", "this is no C++", "compile_error"),
    cpp_attack("include_of_accounts", '#include "/etc/passwd"\nint main() {}', "compile_error"),
    cpp_attack("include_of_other_processes", '#include "/proc/1/environ"\nint main() {}', "compile_error"),
    cpp_attack("include_without_end", '#include "/dev/zero"\nint main() {}', "compile_error"),
    cpp_attack("include_of_itself", "#include __FILE__\nint main() {}", "compile_error"),
    cpp_attack(
        "endless_template", "template <int N> struct T { T<N + 1> more; }; int main() { T<0> t; }", "compile_error"
    ),
    cpp_attack(
        "too_large_a_program",
        "char data[100 << 20] = {1}; int main() { return data[7]; }",
        "compile_error",
    ),
    cpp_attack("link_to_nothing", "int missing(); int main() { return missing(); }", "compile_error"),
    cpp_attack(
        "incbin_of_the_judges_files",
        'asm(".incbin \\"JUDGE\\""); int main() {}',
        "compile_error",
    ),
]

HONEST = [
    cpp_honest("sum", f"int main() {{ {SUM} }}"),
    cpp_honest(
        "fast_streams",
        "#include <iostream>\nint main() { std::ios::sync_with_stdio(false); std::cin.tie(nullptr); long n, x, s = 0;"
        " std::cin >> n; while (n--) { std::cin >> x; s += x; } std::cout << s << '\\n'; }",
        [{"input": "200000\n" + " ".join(["7"] * 200000) + "\n", "output": "1400000\n"}],
    ),
    cpp_honest(
        "reads_until_the_end",
        'int main() { long x, s = 0; while (scanf("%ld", &x) == 1) s += x; printf("%ld", s); }',
        [{"input": "1 2\n3", "output": "6"}, {"input": "", "output": "0\n"}],
    ),
    cpp_honest(
        "a_million_frames",
        "int deep(int n) { volatile int here = n; return n ? deep(n - 1) + (here == n) : 0; }\n"
        'int main() { printf("%d\\n", deep(1000000)); }',
        [{"input": "", "output": "1000000\n"}],
    ),
    cpp_honest(
        "a_stack_as_large_as_the_limit",
        'int main() { volatile char data[200 << 20]; data[0] = 1; printf("%d\\n", data[0]); }',
        [{"input": "", "output": "1\n"}],
    ),
    cpp_honest(
        "sixty_four_threads",
        "void* one(void* n) { *(long*)n *= 2; return nullptr; }\n"
        "int main() { pthread_t t[64]; long v[64], s = 0; for (long i = 0; i < 64; i++) { v[i] = i;"
        " if (pthread_create(&t[i], nullptr, one, &v[i])) abort(); }"
        ' for (int i = 0; i < 64; i++) { pthread_join(t[i], nullptr); s += v[i]; } printf("%ld\\n", s); }',
        [{"input": "", "output": "4032\n"}],
        memory_limit_mb=64,
    ),
    cpp_honest(
        "exceptions",
        '#include <stdexcept>\nint main() { try { throw std::runtime_error("caught"); }'
        " catch (const std::exception& e) { puts(e.what()); } }",
        [{"input": "", "output": "caught\n"}],
    ),
    cpp_honest(
        "locale",
        '#include <clocale>\n#include <cwchar>\nint main() { if (!setlocale(LC_ALL, "")) return 1; wchar_t w;'
        ' if (mbtowc(&w, "\\xc3\\xa9", 2) != 2) return 2; printf("%d\\n", (int)w); }',
        [{"input": "", "output": "233\n"}],
    ),
    cpp_honest("no_final_newline", f"int main() {{ {SUM} }}", [{"input": "1 2", "output": "3"}]),
    cpp_honest(
        "exit_in_a_destructor", f"struct T {{ ~T() {{ fflush(stdout); _exit(0); }} }} t; int main() {{ {SUM} }}"
    ),
    cpp_honest(
        "closes_its_input_and_writes_by_write", f'int main() {{ {SUM} fflush(stdout); close(0); write(1, "", 0); }}'
    ),
    cpp_honest(
        "handles_its_own_signal",
        "#include <csetjmp>\nsigjmp_buf back; void on(int) { siglongjmp(back, 1); }\n"
        'int main() { signal(SIGFPE, on); if (sigsetjmp(back, 1)) { puts("caught"); return 0; } raise(SIGFPE); }',
        [{"input": "", "output": "caught\n"}],
    ),
    cpp_honest(
        "starts_with_default_signals",
        "int main() { struct sigaction a; for (int s : {SIGINT, SIGPIPE, SIGXFSZ}) { sigaction(s, nullptr, &a);"
        ' if (a.sa_handler != SIG_DFL) return s; } puts("default"); }',
        [{"input": "", "output": "default\n"}],
    ),
    cpp_honest(
        "forks_and_waits",
        'int main() { fflush(stdout); if (!fork()) { puts("child"); return 0; } wait(nullptr); puts("parent"); }',
        [{"input": "", "output": "child\nparent\n"}],
    ),
    cpp_honest(
        "has_no_descriptor_but_its_own",
        'int main() { for (int fd = 3; fd < 1024; fd++) if (fcntl(fd, F_GETFD) != -1) return 1; puts("three"); }',
        [{"input": "", "output": "three\n"}],
    ),
    cpp_honest("writes_a_file", f'int main() {{ FILE* f = fopen("x.txt", "w"); fputs("1", f); fclose(f); {SUM} }}'),
    refused("socket", "socket(AF_INET, SOCK_STREAM, 0)", "EACCES"),
    refused("ptrace", "ptrace(PTRACE_ATTACH, getppid(), 0, 0)"),
    refused("process_vm_readv", "(process_vm_readv(getppid(), nullptr, 0, nullptr, 0, 0))"),
    refused("prlimit_of_another_process", "syscall(SYS_prlimit64, getppid(), RLIMIT_CPU, nullptr, nullptr)"),
    refused("mount", 'syscall(SYS_mount, "x", "/tmp", "tmpfs", 0, 0)'),
    refused("new_user_namespace", "syscall(SYS_unshare, 0x10000000)"),
    refused("io_uring", "syscall(SYS_io_uring_setup, 1, nullptr)", "ENOSYS"),
    cpp_honest(
        "writing_to_the_system_fails",
        'int main() { int f = open("/usr/x", O_CREAT | O_WRONLY, 0600);'
        ' puts(f < 0 && (errno == EROFS || errno == EACCES) ? "refused" : "done"); }',
        FAILED_CALL,
    ),
]
