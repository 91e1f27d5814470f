/* glibc 2.36's random numbers, of which a static libstdc++ seeds its engines: from the kernel, as glibc takes them. */
#define HIDDEN __attribute__((visibility("hidden")))

extern long getrandom(void *, unsigned long, unsigned);
extern void abort(void) __attribute__((noreturn));

HIDDEN void arc4random_buf(void *out, unsigned long size)
{
    char *at = out;
    while (size) {
        long got = getrandom(at, size, 0);
        if (got < 0)
            abort(); /* as glibc does: no caller expects a failure */
        at += got;
        size -= (unsigned long)got;
    }
}

HIDDEN unsigned arc4random(void)
{
    unsigned value;
    arc4random_buf(&value, sizeof value);
    return value;
}
