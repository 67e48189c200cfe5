// Preloaded into a process (LD_PRELOAD): a disk that is full, and a wall clock that jumps. See tests/host/hostile.py.
//
// HOSTILE_DISK_BYTES   regular files take so many bytes, all together; then no space is left
// HOSTILE_CLOCK_S      the wall clock is off by up to so many seconds either way, by another amount at each look

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

template <typename Function> Function *real(const char *name) { return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name)); }

std::atomic<long> room{[] { const char *text = getenv("HOSTILE_DISK_BYTES"); return text ? atol(text) : -1L; }()};

bool no_space(int file, size_t bytes) {
    struct stat about;
    if (room.load() < 0 || fstat(file, &about) || !S_ISREG(about.st_mode)) return false;
    long left = room.load();
    do {
        if (left < static_cast<long>(bytes)) { errno = ENOSPC; return true; }
    } while (!room.compare_exchange_weak(left, left - static_cast<long>(bytes)));
    return false;
}

long jump_s() {
    static const long range = [] { const char *text = getenv("HOSTILE_CLOCK_S"); return text ? atol(text) : 0L; }();
    static std::atomic<unsigned> look{0};
    return range ? static_cast<long>(look++ * 2654435761u % (2 * range)) - range : 0;
}

}  // namespace

extern "C" {

ssize_t write(int file, const void *data, size_t size) {
    static auto *next = real<ssize_t(int, const void *, size_t)>("write");
    return no_space(file, size) ? -1 : next(file, data, size);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    static auto *next = real<ssize_t(int, const void *, size_t, off64_t)>("pwrite64");
    return no_space(file, size) ? -1 : next(file, data, size, at);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static auto *next = real<ssize_t(int, const struct iovec *, int)>("writev");
    size_t size = 0;
    for (int k = 0; k < count; ++k) size += parts[k].iov_len;
    return no_space(file, size) ? -1 : next(file, parts, count);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static auto *next = real<int(clockid_t, struct timespec *)>("clock_gettime");
    int failed = next(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jump_s();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    static auto *next = real<int(struct timeval *, void *)>("gettimeofday");
    int failed = next(now, zone);
    if (!failed) now->tv_sec += jump_s();
    return failed;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}

}  // extern "C"
