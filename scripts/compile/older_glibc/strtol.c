/* glibc 2.38 gives C23's strtol a name of its own. It reads "0b1" as binary; upstream's wheels have the older one.
   No header is included: a newer compiler's would turn the older names into the newer ones again. */
#define FORWARD(type, newer, older)                                                                                    \
    extern type older(const void *, void *, int);                                                                      \
    __attribute__((visibility("hidden"))) type newer(const void *text, void *end, int base)                            \
    {                                                                                                                  \
        return older(text, end, base);                                                                                 \
    }

FORWARD(long, __isoc23_strtol, strtol)
FORWARD(unsigned long, __isoc23_strtoul, strtoul)
FORWARD(long long, __isoc23_strtoll, strtoll)
FORWARD(unsigned long long, __isoc23_strtoull, strtoull)
FORWARD(long, __isoc23_wcstol, wcstol)
FORWARD(unsigned long, __isoc23_wcstoul, wcstoul)
FORWARD(long long, __isoc23_wcstoll, wcstoll)
FORWARD(unsigned long long, __isoc23_wcstoull, wcstoull)
