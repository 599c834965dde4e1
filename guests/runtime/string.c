/* The few routines of the C library that a freestanding program cannot do without. */
#include "guest.h"

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (unsigned char)*a - (unsigned char)*b;
}

int strncmp(const char *a, const char *b, size_t n)
{
    for (; n; n--, a++, b++)
        if (*a != *b || !*a)
            return (unsigned char)*a - (unsigned char)*b;
    return 0;
}

void *memset(void *to, int byte, size_t n)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

void *memmove(void *to, const void *from, size_t n)
{
    char *t = to;
    const char *f = from;
    if (t <= f)
        return memcpy(to, from, n);
    while (n--) {
        t[n] = f[n];
        barrier();                       /* or the compiler makes a call to memmove of it */
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

uint64_t divide(uint64_t dividend, uint32_t divisor)
{
#ifdef __x86_64__
    return dividend / divisor;
#else
    uint32_t high = (uint32_t)(dividend >> 32), low = (uint32_t)dividend, rest = high % divisor;
    high /= divisor;
    __asm__("divl %[divisor]" : "+a"(low), "+d"(rest) : [divisor] "r"(divisor));
    return (uint64_t)high << 32 | low;
#endif
}

unsigned long parse_number(const char *s)
{
    unsigned long n = 0;
    for (; *s >= '0' && *s <= '9'; s++)
        n = n * 10 + (unsigned long)(*s - '0');
    return n;
}
