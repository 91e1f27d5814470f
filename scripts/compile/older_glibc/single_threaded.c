/* glibc 2.32's answer to "does this process have one thread?": "not known", so that libstdc++ counts atomically. */
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
