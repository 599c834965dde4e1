/* The console: a shared ring in a domU (xen/io/console.h), the hypervisor's own serial line in domain 0. */
#include "guest.h"
#include <xen/io/console.h>

static struct xencons_interface *ring;   /* NULL in domain 0 */
static evtchn_port_t port;
static bool port_is_handled;
static char dom0_input[64];
static size_t dom0_available, dom0_taken;

void console_init(void)
{
    if (is_initial_domain())
        return;
    ring = va_of_mfn(start_info->console.domU.mfn);
    port = start_info->console.domU.evtchn;
}

static void tell_other_end(void)
{
    struct evtchn_send send = {.port = port};
    hypercall_event_channel_op(EVTCHNOP_send, &send);
}

static void ring_put(char c)
{
    XENCONS_RING_IDX producer = ring->out_prod;
    while (producer - *(volatile XENCONS_RING_IDX *)&ring->out_cons >= sizeof(ring->out)) {
        tell_other_end();                /* full: let it be emptied */
        hypercall_sched_op(SCHEDOP_yield, NULL);
    }
    ring->out[MASK_XENCONS_IDX(producer, ring->out)] = c;
    barrier();                           /* the byte before the index that publishes it */
    ring->out_prod = producer + 1;
}

/* Write text; a newline is sent as CR LF, as a terminal in raw mode at the other end wants it. */
void console_write(const char *s, size_t n)
{
    if (!n)
        return;
    if (!ring) {
        hypercall_console_io(CONSOLEIO_write, (unsigned int)n, (char *)s);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\n')
            ring_put('\r');
        ring_put(s[i]);
    }
    tell_other_end();
}

static bool next_character(char *c)
{
    if (!ring) {
        if (dom0_taken == dom0_available) {
            long n = hypercall_console_io(CONSOLEIO_read, sizeof(dom0_input), dom0_input);
            dom0_taken = 0;
            dom0_available = n > 0 ? (size_t)n : 0;
            if (!dom0_available)
                return false;
        }
        *c = dom0_input[dom0_taken++];
        return true;
    }
    XENCONS_RING_IDX consumer = ring->in_cons;
    if (consumer == *(volatile XENCONS_RING_IDX *)&ring->in_prod)
        return false;
    barrier();                           /* the index before the byte it announces */
    *c = ring->in[MASK_XENCONS_IDX(consumer, ring->in)];
    barrier();
    ring->in_cons = consumer + 1;
    return true;
}

size_t console_read(char *to, size_t n)
{
    size_t got = 0;
    while (got < n && next_character(&to[got]))
        got++;
    if (got && ring)
        tell_other_end();                /* room again */
    return got;
}

static void wake(evtchn_port_t woken)
{
    (void)woken;                         /* the upcall itself ends the wait */
}

static char wait_character(void)
{
    char c;
    if (!port_is_handled) {
        if (!ring)
            port = (evtchn_port_t)event_bind_virq(VIRQ_CONSOLE);
        event_handle(port, wake);
        port_is_handled = true;
    }
    for (;;) {
        events_off();                    /* or a key that comes between the look and the block is slept through */
        if (console_read(&c, 1)) {
            events_on();
            return c;
        }
        block();
    }
}

/* Read a line, echoing it as typed; backspace works. Returns its length, without the line's end. */
size_t console_line(char *to, size_t size)
{
    size_t length = 0;
    for (;;) {
        char c = wait_character();
        if (c == '\r' || c == '\n') {
            console_write("\n", 1);
            to[length] = 0;
            return length;
        }
        if ((c == 8 || c == 127) && length) {
            length--;
            console_write("\b \b", 3);
        } else if (c >= 32 && c < 127 && length + 1 < size) {
            to[length++] = c;
            console_write(&c, 1);
        }
    }
}
