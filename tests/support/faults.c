/* Loaded with LD_PRELOAD: system calls that write below one folder are counted, and from the n-th on, or that one alone, they
   fail. It covers what Python's own hooks do not see: safetensors, tokenizers, Arrow, torch and SQLite.

   faults_arm(folder, first, errno, how_often, log)   the next call that writes below `folder` is number 1; first 0 only counts
   faults_count()                                     how many there were
   A line for each goes to the file descriptor `log`: its name and path. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static long at, times, count;
static int code, log_file = -1;

void faults_arm(const char *folder, long first, int error, long how_often, int log) {
    snprintf(below, sizeof below, "%s/", folder);
    at = first, code = error, times = how_often, count = 0, log_file = log;
}
long faults_count(void) { return count; }

/* Removing needs no space, but a disk that can be written. */
static int removes(const char *call) { return strcmp(call, "remove") == 0 && (code == ENOSPC || code == 0); }

/* 1 where this call is to fail; `path` may be relative to the current folder or to `dir`. */
static int fails(const char *call, int dir, const char *path) {
    char whole[2 * PATH_MAX];
    if (!below[0] || !path || removes(call)) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char link[64], base[PATH_MAX];
        snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    if (strncmp(whole, below, strlen(below)) != 0) return 0;
    count++;
    if (log_file >= 0) dprintf(log_file, "%s %s\n", call, whole);
    if (at == 0 || count < at || count >= at + times) return 0;
    errno = code;
    return 1;
}

static int fails_at(const char *call, int file) {
    char link[64], path[PATH_MAX];
    if (!below[0] || file == log_file) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, AT_FDCWD, path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define BY_PATH(type, name, parameters, call, arguments, dir, path) \
    type name parameters { REAL(name); return fails(call, dir, path) ? -1 : real arguments; }
#define BY_FILE(type, name, parameters, call, arguments) \
    type name parameters { REAL(name); return fails_at(call, file) ? -1 : real arguments; }
#define OPEN(name, parameters, arguments, dir) \
    int name parameters { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return (flags & (O_WRONLY | O_RDWR | O_CREAT)) && fails("open", dir, path) ? -1 : real arguments; }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int dir, const char *path, int flags, ...), (dir, path, flags, mode), dir)
OPEN(openat64, (int dir, const char *path, int flags, ...), (dir, path, flags, mode), dir)

static FILE *open_stream(FILE *(*real)(const char *, const char *), const char *path, const char *mode) {
    return strpbrk(mode, "wa+") && fails("open", AT_FDCWD, path) ? NULL : real(path, mode);
}
FILE *fopen(const char *path, const char *mode) { REAL(fopen); return open_stream(real, path, mode); }
FILE *fopen64(const char *path, const char *mode) { REAL(fopen64); return open_stream(real, path, mode); }

BY_FILE(ssize_t, write, (int file, const void *data, size_t size), "write", (file, data, size))
BY_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t offset), "write", (file, data, size, offset))
BY_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t offset), "write", (file, data, size, offset))
BY_FILE(ssize_t, writev, (int file, const struct iovec *data, int parts), "write", (file, data, parts))
BY_FILE(int, fsync, (int file), "fsync", (file))
BY_FILE(int, fdatasync, (int file), "fsync", (file))
BY_FILE(int, ftruncate, (int file, off_t size), "truncate", (file, size))
BY_FILE(int, ftruncate64, (int file, off64_t size), "truncate", (file, size))
BY_FILE(int, fchmod, (int file, mode_t mode), "chmod", (file, mode))
BY_PATH(int, truncate, (const char *path, off_t size), "truncate", (path, size), AT_FDCWD, path)
BY_PATH(int, chmod, (const char *path, mode_t mode), "chmod", (path, mode), AT_FDCWD, path)
BY_PATH(int, fchmodat, (int dir, const char *path, mode_t mode, int flags), "chmod", (dir, path, mode, flags), dir, path)
BY_PATH(int, mkdir, (const char *path, mode_t mode), "mkdir", (path, mode), AT_FDCWD, path)
BY_PATH(int, mkdirat, (int dir, const char *path, mode_t mode), "mkdir", (dir, path, mode), dir, path)
BY_PATH(int, rename, (const char *from, const char *to), "rename", (from, to), AT_FDCWD, to)
BY_PATH(int, renameat, (int dir, const char *from, int other, const char *to), "rename", (dir, from, other, to), other, to)
BY_PATH(int, link, (const char *from, const char *to), "link", (from, to), AT_FDCWD, to)
BY_PATH(int, linkat, (int dir, const char *from, int other, const char *to, int flags), "link", (dir, from, other, to, flags), other, to)
BY_PATH(int, symlink, (const char *from, const char *to), "link", (from, to), AT_FDCWD, to)
BY_PATH(int, unlink, (const char *path), "remove", (path), AT_FDCWD, path)
BY_PATH(int, unlinkat, (int dir, const char *path, int flags), "remove", (dir, path, flags), dir, path)
BY_PATH(int, rmdir, (const char *path), "remove", (path), AT_FDCWD, path)
