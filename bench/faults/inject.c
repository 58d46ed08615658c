/* Faults of a disk and of the wall clock, preloaded into one process (LD_PRELOAD).
 *
 * Files below $FAULT_ROOT fail or are slow as the switches in the mapped file $FAULT_SWITCHES say: eight signed
 * 64-bit numbers, in the order of `enum`. Zero: no fault. Built by bench/faults/disks.py with cc.
 */
#define _GNU_SOURCE
#define _LARGEFILE64_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE_ERRNO, READ_ERRNO, CREATE_ERRNO, SYNC_ERRNO, WRITE_US_PER_MIB, READ_US_PER_MIB, CLOCK_SECONDS, CALLS };

static volatile int64_t none[8];
static volatile int64_t *switches = none;
static char root[512];
static size_t root_length;

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULT_SWITCHES"), *where = getenv("FAULT_ROOT");
    int (*open_next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    if (!path || !where || strlen(where) >= sizeof root) return;
    int fd = open_next(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED) return;
    strcpy(root, where);
    root_length = strlen(root);
    switches = map;
}

static int below(const char *path) { return root_length && !strncmp(path, root, root_length); }

static int ours(int fd)
{
    char link[64], path[600];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* -1 with errno set if the call must fail; else 0, after the time that the bytes take. */
static int suffer(int fd, size_t bytes, int error, int speed)
{
    if ((!switches[error] && !switches[speed]) || !ours(fd)) return 0;
    switches[CALLS]++;
    if (switches[error]) { errno = (int)switches[error]; return -1; }
    double us = (double)switches[speed] * (double)bytes / 1048576.0;
    struct timespec wait = { (time_t)(us / 1e6), (long)((int64_t)us % 1000000 * 1000) };
    nanosleep(&wait, NULL);
    return 0;
}

static size_t total(const struct iovec *parts, int count)
{
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    return bytes;
}

#define WRITING(fd, bytes) if (suffer(fd, bytes, WRITE_ERRNO, WRITE_US_PER_MIB)) return -1
#define READING(fd, bytes) if (suffer(fd, bytes, READ_ERRNO, READ_US_PER_MIB)) return -1

ssize_t write(int fd, const void *data, size_t n) { NEXT(write); WRITING(fd, n); return next(fd, data, n); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { NEXT(pwrite); WRITING(fd, n); return next(fd, data, n, at); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { NEXT(pwrite64); WRITING(fd, n); return next(fd, data, n, at); }
ssize_t pwritev(int fd, const struct iovec *v, int c, off_t at) { NEXT(pwritev); WRITING(fd, total(v, c)); return next(fd, v, c, at); }
ssize_t pwritev64(int fd, const struct iovec *v, int c, off64_t at) { NEXT(pwritev64); WRITING(fd, total(v, c)); return next(fd, v, c, at); }
ssize_t pwritev2(int fd, const struct iovec *v, int c, off_t at, int f) { NEXT(pwritev2); WRITING(fd, total(v, c)); return next(fd, v, c, at, f); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int c, off64_t at, int f) { NEXT(pwritev64v2); WRITING(fd, total(v, c)); return next(fd, v, c, at, f); }
ssize_t read(int fd, void *data, size_t n) { NEXT(read); READING(fd, n); return next(fd, data, n); }
ssize_t pread(int fd, void *data, size_t n, off_t at) { NEXT(pread); READING(fd, n); return next(fd, data, n, at); }
ssize_t pread64(int fd, void *data, size_t n, off64_t at) { NEXT(pread64); READING(fd, n); return next(fd, data, n, at); }
ssize_t preadv(int fd, const struct iovec *v, int c, off_t at) { NEXT(preadv); READING(fd, total(v, c)); return next(fd, v, c, at); }
ssize_t preadv64(int fd, const struct iovec *v, int c, off64_t at) { NEXT(preadv64); READING(fd, total(v, c)); return next(fd, v, c, at); }
ssize_t preadv2(int fd, const struct iovec *v, int c, off_t at, int f) { NEXT(preadv2); READING(fd, total(v, c)); return next(fd, v, c, at, f); }
ssize_t preadv64v2(int fd, const struct iovec *v, int c, off64_t at, int f) { NEXT(preadv64v2); READING(fd, total(v, c)); return next(fd, v, c, at, f); }

int fsync(int fd) { NEXT(fsync); if (suffer(fd, 0, SYNC_ERRNO, SYNC_ERRNO)) return -1; return next(fd); }
int fdatasync(int fd) { NEXT(fdatasync); if (suffer(fd, 0, SYNC_ERRNO, SYNC_ERRNO)) return -1; return next(fd); }

static int creating(const char *path, int flags)
{
    if (!switches[CREATE_ERRNO] || !below(path) || !(flags & (O_CREAT | O_WRONLY | O_RDWR))) return 0;
    switches[CALLS]++;
    errno = (int)switches[CREATE_ERRNO];
    return 1;
}

static int mode_of(va_list list) { return va_arg(list, int); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        NEXT(name); \
        va_list list; \
        va_start(list, flags); \
        int mode = mode_of(list); \
        va_end(list); \
        return creating(path, flags) ? -1 : next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int openat(int at, const char *path, int flags, ...)
{
    NEXT(openat);
    va_list list;
    va_start(list, flags);
    int mode = mode_of(list);
    va_end(list);
    return creating(path, flags) ? -1 : next(at, path, flags, mode);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    NEXT(clock_gettime);
    int done = next(clock, now);
    if (!done && clock == CLOCK_REALTIME) now->tv_sec += switches[CLOCK_SECONDS];
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    NEXT(gettimeofday);
    int done = next(now, zone);
    if (!done) now->tv_sec += switches[CLOCK_SECONDS];
    return done;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
