/* Formatted printing: %c %s %d %u %x %p %%, with l, ll, z, a width, and the flags - and 0. */
#include "guest.h"

struct output {
    char *to;
    size_t size, length;                 /* length counts what does not fit, too */
};

static void put(struct output *out, char c)
{
    if (out->length + 1 < out->size)
        out->to[out->length] = c;
    out->length++;
}

static void put_padded(struct output *out, const char *text, size_t n, int width, bool left, char fill)
{
    int missing = width - (int)n;
    for (; !left && missing > 0; missing--)
        put(out, fill);
    while (n--)
        put(out, *text++);
    for (; missing > 0; missing--)
        put(out, ' ');
}

static void put_number(struct output *out, uint64_t n, unsigned int base, bool negative, int width, bool left,
                       char fill)
{
    char digits[24];
    size_t at = sizeof(digits);
    do {
        uint64_t quotient = divide(n, base);
        digits[--at] = "0123456789abcdef"[n - quotient * base];
        n = quotient;
    } while (n);
    if (negative && fill == '0') {       /* -007, not 00-7 */
        put(out, '-');
        width--;
    } else if (negative) {
        digits[--at] = '-';
    }
    put_padded(out, digits + at, sizeof(digits) - at, width, left, fill);
}

static uint64_t next_unsigned(va_list *arguments, int longs)
{
    if (longs >= 2)
        return va_arg(*arguments, unsigned long long);
    if (longs == 1)
        return va_arg(*arguments, unsigned long);
    return va_arg(*arguments, unsigned int);
}

static int64_t next_signed(va_list *arguments, int longs)
{
    if (longs >= 2)
        return va_arg(*arguments, long long);
    if (longs == 1)
        return va_arg(*arguments, long);
    return va_arg(*arguments, int);
}

/* One conversion, from behind its '%'; returns where the format goes on. */
static const char *convert(struct output *out, const char *format, va_list *arguments)
{
    bool left = false;
    char fill = ' ';
    int width = 0, longs = 0;
    for (; *format == '-' || *format == '0'; format++)
        if (*format == '-')
            left = true;
        else
            fill = '0';
    for (; *format >= '0' && *format <= '9'; format++)
        width = width * 10 + (*format - '0');
    for (; *format == 'l' || *format == 'z'; format++)
        longs++;
    if (*format == 'c') {
        char c = (char)va_arg(*arguments, int);
        put_padded(out, &c, 1, width, left, ' ');
    } else if (*format == 's') {
        const char *s = va_arg(*arguments, const char *);
        put_padded(out, s, strlen(s), width, left, ' ');
    } else if (*format == 'd') {
        int64_t n = next_signed(arguments, longs);
        put_number(out, n < 0 ? -(uint64_t)n : (uint64_t)n, 10, n < 0, width, left, fill);
    } else if (*format == 'u') {
        put_number(out, next_unsigned(arguments, longs), 10, false, width, left, fill);
    } else if (*format == 'x') {
        put_number(out, next_unsigned(arguments, longs), 16, false, width, left, fill);
    } else if (*format == 'p') {
        put_number(out, (unsigned long)va_arg(*arguments, void *), 16, false, 2 * sizeof(void *), false, '0');
    } else {
        put(out, *format);
    }
    return format + 1;
}

/* Returns the length of the whole text; at most size - 1 characters of it and a NUL are stored. */
size_t format_text(char *to, size_t size, const char *format, va_list arguments)
{
    struct output out = {to, size, 0};
    va_list copy;
    va_copy(copy, arguments);
    while (*format) {
        if (*format == '%')
            format = convert(&out, format + 1, &copy);
        else
            put(&out, *format++);
    }
    va_end(copy);
    to[out.length < size ? out.length : size - 1] = 0;
    return out.length;
}

size_t format_into(char *to, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    size_t length = format_text(to, size, format, arguments);
    va_end(arguments);
    return length;
}

void print(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    size_t length = format_text(text, sizeof(text), format, arguments);
    va_end(arguments);
    console_write(text, length < sizeof(text) ? length : sizeof(text) - 1);
}
