/* Preloaded into a daemon: writes below the folder DISK_FAULT_IN fail with the error number that
   stands in the file DISK_FAULT, as long as that file is there. Reads go on, as they do on a disk
   that the kernel has made read-only. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fault(int fd)
{
    const char *flag = getenv("DISK_FAULT"), *folder = getenv("DISK_FAULT_IN");
    if (!flag || !folder || access(flag, F_OK))
        return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder)))
        return 0;
    FILE *file = fopen(flag, "r");
    int number = EIO;
    if (file) {
        if (fscanf(file, "%d", &number) != 1)
            number = EIO;
        fclose(file);
    }
    return number;
}

#define FAILS(type, name, parameters, ...)                                                         \
    type name parameters                                                                           \
    {                                                                                              \
        static type(*real) parameters;                                                             \
        if (!real)                                                                                 \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                    \
        int number = fault(fd);                                                                    \
        if (number) {                                                                              \
            errno = number;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        return real(__VA_ARGS__);                                                                  \
    }

FAILS(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
FAILS(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
FAILS(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
FAILS(int, ftruncate, (int fd, off_t size), fd, size)
FAILS(int, ftruncate64, (int fd, off64_t size), fd, size)
FAILS(int, fsync, (int fd), fd)
FAILS(int, fdatasync, (int fd), fd)
