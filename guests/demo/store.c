/* xenstore: a tree of names that domains share through domain 0, over a ring in a shared page (xen/io/xs_wire.h). */
#include "demo.h"
#include <xen/io/xs_wire.h>

static struct xenstore_domain_interface *store;
static evtchn_port_t port;
static uint32_t requests;

static void wake(evtchn_port_t woken)
{
    (void)woken;                         /* the upcall itself ends the wait */
}

static void open_store(void)
{
    if (store)
        return;
    store = va_of_mfn(start_info->store_mfn);
    port = start_info->store_evtchn;
    event_handle(port, wake);
}

static void put(const void *bytes, size_t n)
{
    const char *from = bytes;
    while (n) {
        XENSTORE_RING_IDX producer = store->req_prod;
        if (producer - *(volatile XENSTORE_RING_IDX *)&store->req_cons == XENSTORE_RING_SIZE) {
            event_send(port);
            hypercall_sched_op(SCHEDOP_yield, NULL);
            continue;
        }
        store->req[MASK_XENSTORE_IDX(producer)] = *from++;
        barrier();                       /* the byte before the index that publishes it */
        store->req_prod = producer + 1;
        n--;
    }
}

static void get(char *to, size_t n)
{
    while (n) {
        events_off();                    /* or an answer that comes between the look and the block is slept through */
        XENSTORE_RING_IDX consumer = store->rsp_cons;
        if (consumer == *(volatile XENSTORE_RING_IDX *)&store->rsp_prod) {
            block();
            continue;
        }
        events_on();
        barrier();                       /* the index before the byte that it announces */
        *to++ = store->rsp[MASK_XENSTORE_IDX(consumer)];
        barrier();
        store->rsp_cons = consumer + 1;
        n--;
    }
}

/* One request and its answer; the length of the answer, of which `size` bytes at most are kept, or -1 for an error. */
static long request(uint32_t type, const char *payload, size_t length, char *answer, size_t size)
{
    struct xsd_sockmsg head = {.type = type, .req_id = ++requests, .len = (uint32_t)length};
    open_store();
    put(&head, sizeof(head));
    put(payload, length);
    event_send(port);
    get((char *)&head, sizeof(head));
    for (uint32_t i = 0; i < head.len; i++) {
        char c;
        get(&c, 1);
        if (i < size)
            answer[i] = c;
    }
    event_send(port);                    /* room again */
    return head.type == XS_ERROR ? -1 : (long)head.len;
}

long store_read(const char *path, char *value, size_t size)
{
    long length = request(XS_READ, path, strlen(path) + 1, value, size - 1);
    value[length < 0 ? 0 : length < (long)size ? length : (long)size - 1] = 0;
    return length;
}

/* Strings one behind the other make a payload; the terminator of the last belongs to it where `terminated` says so. */
static long request_strings(uint32_t type, const char *const strings[], unsigned int count, bool terminated)
{
    char payload[256], answer[16];
    size_t length = 0;
    for (unsigned int i = 0; i < count; i++) {
        size_t n = strlen(strings[i]) + (i + 1 < count || terminated);
        if (length + n > sizeof(payload))
            return -1;
        memcpy(payload + length, strings[i], n);
        length += n;
    }
    return request(type, payload, length, answer, sizeof(answer));
}

long store_write(const char *path, const char *value)
{
    return request_strings(XS_WRITE, (const char *const[]){path, value}, 2, false);
}

long store_let_read(const char *path, unsigned int own, unsigned int other)
{
    char owner[16], reader[16];
    format_into(owner, sizeof(owner), "n%u", own);
    format_into(reader, sizeof(reader), "r%u", other);
    return request_strings(XS_SET_PERMS, (const char *const[]){path, owner, reader}, 3, true);
}
