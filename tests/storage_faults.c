/* Loaded before the C library: calls that name a file below a folder, or read or write one, fail for a time as a file system would.

   Configured by storage_fault(), or by the environment: STORAGE_FAULT="folder|calls|errno|milliseconds|switch".  calls: words such as
   open, or * for all.  It begins with the first call that matches once the file `switch` is there ("": at once), and ends after so many
   milliseconds (negative: never). */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char folder[4096], calls[512], switch_file[4096];
static int number, milliseconds, known;
static double began;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

void storage_fault(const char *where, const char *which, int error, int ms, const char *when) {
    snprintf(folder, sizeof folder, "%s", where);
    snprintf(calls, sizeof calls, " %s ", which);
    snprintf(switch_file, sizeof switch_file, "%s", when);
    number = error, milliseconds = ms, began = 0, known = 1;
}

static void from_environment(void) {
    known = 1;
    const char *given = getenv("STORAGE_FAULT");
    if (!given) return;
    char text[9000], *field[5] = {"", "", "0", "0", ""}, *rest = text;
    snprintf(text, sizeof text, "%s", given);
    for (int i = 0; i < 5 && rest; i++) field[i] = strsep(&rest, "|");
    storage_fault(field[0], field[1], atoi(field[2]), atoi(field[3]), field[4]);
}

static int fails(const char *call, int at, const char *path) {
    char full[8192], word[64];
    if (!known) from_environment();
    if (!folder[0] || !path) return 0;
    if (path[0] == '/') snprintf(full, sizeof full, "%s", path);
    else {
        char link[64], base[4096];
        ssize_t length = -1;
        if (at != AT_FDCWD) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
            if (length >= 0) base[length] = 0;
        } else if (syscall(SYS_getcwd, base, sizeof base) > 0) length = 1;
        if (length < 0) return 0;
        snprintf(full, sizeof full, "%s/%s", base, path);
    }
    if (strncmp(full, folder, strlen(folder))) return 0;
    snprintf(word, sizeof word, " %s ", call);
    if (!strstr(calls, " * ") && !strstr(calls, word)) return 0;
    if (switch_file[0] && syscall(SYS_faccessat, AT_FDCWD, switch_file, F_OK) != 0) return 0;
    if (!began) began = now_ms();
    if (milliseconds >= 0 && now_ms() - began > milliseconds) return 0;
    errno = number;
    return 1;
}

static int fd_fails(const char *call, int fd) {
    char link[64], path[4096];
    if (!known) from_environment();
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return path[0] == '/' && fails(call, AT_FDCWD, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE(flags) mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, int); va_end(more); }

int open(const char *path, int flags, ...) { MODE(flags) return fails("open", AT_FDCWD, path) ? -1 : REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return fails("open", AT_FDCWD, path) ? -1 : REAL(open64)(path, flags, mode); }
FILE *fopen(const char *path, const char *mode) { return fails("open", AT_FDCWD, path) ? NULL : REAL(fopen)(path, mode); }
FILE *fopen64(const char *path, const char *mode) { return fails("open", AT_FDCWD, path) ? NULL : REAL(fopen64)(path, mode); }
DIR *opendir(const char *path) { return fails("list", AT_FDCWD, path) ? NULL : REAL(opendir)(path); }
int stat(const char *path, struct stat *to) { return fails("stat", AT_FDCWD, path) ? -1 : REAL(stat)(path, to); }
int stat64(const char *path, struct stat64 *to) { return fails("stat", AT_FDCWD, path) ? -1 : REAL(stat64)(path, to); }
int lstat64(const char *path, struct stat64 *to) { return fails("stat", AT_FDCWD, path) ? -1 : REAL(lstat64)(path, to); }
int fstatat64(int at, const char *path, struct stat64 *to, int flags) { return fails("stat", at, path) ? -1 : REAL(fstatat64)(at, path, to, flags); }
int rename(const char *old, const char *new) { return fails("rename", AT_FDCWD, new) ? -1 : REAL(rename)(old, new); }
int link(const char *old, const char *new) { return fails("link", AT_FDCWD, new) ? -1 : REAL(link)(old, new); }
int linkat(int a, const char *old, int b, const char *new, int flags) { return fails("link", b, new) ? -1 : REAL(linkat)(a, old, b, new, flags); }
int unlink(const char *path) { return fails("unlink", AT_FDCWD, path) ? -1 : REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { return fails("mkdir", AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode); }
int utimensat(int at, const char *path, const struct timespec times[2], int flags) { return fails("utime", at, path) ? -1 : REAL(utimensat)(at, path, times, flags); }
ssize_t read(int fd, void *to, size_t size) { return fd_fails("read", fd) ? -1 : REAL(read)(fd, to, size); }
ssize_t pread64(int fd, void *to, size_t size, off64_t at) { return fd_fails("read", fd) ? -1 : REAL(pread64)(fd, to, size, at); }
ssize_t write(int fd, const void *from, size_t size) { return fd_fails("write", fd) ? -1 : REAL(write)(fd, from, size); }
int fsync(int fd) { return fd_fails("fsync", fd) ? -1 : REAL(fsync)(fd); }
