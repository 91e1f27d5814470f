/* glibc 2.33 exports the stat family; before, <sys/stat.h> called these functions with the structure's version, which
   is 1 on x86-64 and 0 elsewhere. */
#ifdef __x86_64__
#define VERSION 1
#else
#define VERSION 0
#endif
#define HIDDEN __attribute__((visibility("hidden")))

extern int __xstat64(int, const char *, void *);
extern int __lxstat64(int, const char *, void *);
extern int __fxstat64(int, int, void *);
extern int __fxstatat64(int, int, const char *, void *, int);

HIDDEN int stat64(const char *path, void *out) { return __xstat64(VERSION, path, out); }
HIDDEN int lstat64(const char *path, void *out) { return __lxstat64(VERSION, path, out); }
HIDDEN int fstat64(int file, void *out) { return __fxstat64(VERSION, file, out); }
HIDDEN int fstatat64(int folder, const char *path, void *out, int flags)
{
    return __fxstatat64(VERSION, folder, path, out, flags);
}
HIDDEN int stat(const char *path, void *out) { return __xstat64(VERSION, path, out); }
HIDDEN int lstat(const char *path, void *out) { return __lxstat64(VERSION, path, out); }
HIDDEN int fstat(int file, void *out) { return __fxstat64(VERSION, file, out); }
HIDDEN int fstatat(int folder, const char *path, void *out, int flags)
{
    return __fxstatat64(VERSION, folder, path, out, flags);
}
