/* Makes chosen calls fail on chosen files, to be preloaded: while the file FAULT_TRIGGER exists and says, for example,
   "fsync EIO", that call fails with that error on every file whose path contains FAULT_PATH. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd, const char *call) {
    const char *where = getenv("FAULT_PATH"), *trigger = getenv("FAULT_TRIGGER");
    char link[64], path[PATH_MAX], wanted[16], name[16];
    int before = errno, fields = 0;
    if (!where || !trigger) return 0;
    FILE *file = fopen(trigger, "re");
    if (file) {
        fields = fscanf(file, "%15s %15s", wanted, name);
        fclose(file);
    }
    errno = before;
    if (fields != 2 || strcmp(wanted, call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, where)) return 0;
    errno = strcmp(name, "ENOSPC") ? EIO : ENOSPC;
    return 1;
}

#define NEXT(name, ...) ((ssize_t (*)())dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

ssize_t write(int fd, const void *data, size_t size) { return fails(fd, "write") ? -1 : NEXT(write, fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return fails(fd, "write") ? -1 : NEXT(pwrite, fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return fails(fd, "write") ? -1 : NEXT(pwrite64, fd, data, size, at);
}
int fsync(int fd) { return fails(fd, "fsync") ? -1 : (int)NEXT(fsync, fd); }
int fdatasync(int fd) { return fails(fd, "fsync") ? -1 : (int)NEXT(fdatasync, fd); }
