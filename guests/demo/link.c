/* Two domains, one page: the paper's shared ring (section 3.2, Figure 2), announced through xenstore.
 *
 * The domain with the lower number owns the page, grants it, opens an event channel and asks; the other maps the page,
 * binds the channel and answers with the smallest factor of each number. Requests gather while nobody looks, and one
 * event tells of all of them. */
#include "demo.h"
#include <xen/grant_table.h>

#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/io/ring.h>

struct factor_request { uint32_t id, number; };
struct factor_response { uint32_t id, factor; };
DEFINE_RING_TYPES(factor, struct factor_request, struct factor_response);

#define RING_REFERENCE 8                 /* the first grant reference that the toolstack does not use */

struct link link;
char secret[PAGE_SIZE] __page_aligned = "the cake is in the cellar";

static uint8_t page[PAGE_SIZE] __page_aligned, grants[PAGE_SIZE] __page_aligned;
static union { factor_front_ring_t front; factor_back_ring_t back; } ring;
static uint32_t next_number = 1000003;

static void upcall(evtchn_port_t port)
{
    (void)port;
    link.upcalls++;
}

/* Grant the page to the peer, and say where: "REFERENCE PORT SECRET" in our part of xenstore. */
static void offer(void)
{
    xen_pfn_t frames[1];
    struct gnttab_setup_table table = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(table.frame_list, frames);
    if (hypercall_grant_table_op(GNTTABOP_setup_table, &table, 1) || table.status)
        return;
    pte_write((unsigned long)grants, (uint64_t)frames[0] << 12 | PTE_DATA);
    volatile grant_entry_v1_t *entry = (grant_entry_v1_t *)grants + RING_REFERENCE;
    entry->domid = (domid_t)link.peer;
    entry->frame = (uint32_t)mfn_of(page);
    barrier();                           /* who and what before the flag that makes it valid */
    entry->flags = GTF_permit_access;

    struct evtchn_alloc_unbound channel = {.dom = DOMID_SELF, .remote_dom = (domid_t)link.peer};
    if (hypercall_event_channel_op(EVTCHNOP_alloc_unbound, &channel))
        return;
    link.port = channel.port;
    event_handle(link.port, upcall);
    SHARED_RING_INIT((factor_sring_t *)page);
    FRONT_RING_INIT(&ring.front, (factor_sring_t *)page, PAGE_SIZE);
    char where[48];
    format_into(where, sizeof(where), "%u %u %lu", RING_REFERENCE, (unsigned int)link.port, mfn_of(secret));
    link.up = store_write("data/link", where) >= 0 && store_let_read("data/link", link.own, link.peer) >= 0;
}

static const char *next_word(const char *text)
{
    while (*text && *text != ' ')
        text++;
    while (*text == ' ')
        text++;
    return text;
}

/* Look for the peer's offer; map the page in place of one of our own, and bind the channel. */
static void take(void)
{
    char path[48], where[48];
    format_into(path, sizeof(path), "/local/domain/%u/data/link", link.peer);
    if (store_read(path, where, sizeof(where)) <= 0)
        return;
    const char *port = next_word(where), *frame = next_word(port);
    struct gnttab_map_grant_ref map = {
        .host_addr = (unsigned long)page,
        .flags = GNTMAP_host_map,
        .ref = (grant_ref_t)parse_number(where),
        .dom = (domid_t)link.peer,
    };
    if (hypercall_grant_table_op(GNTTABOP_map_grant_ref, &map, 1) || map.status) {
        print("[link: the grant cannot be mapped: %d]\n", map.status);
        link.peer = 0;
        return;
    }
    struct evtchn_bind_interdomain bind = {
        .remote_dom = (domid_t)link.peer,
        .remote_port = (evtchn_port_t)parse_number(port),
    };
    if (hypercall_event_channel_op(EVTCHNOP_bind_interdomain, &bind))
        return;
    link.secret = parse_number(frame);
    link.port = bind.local_port;
    BACK_RING_INIT(&ring.back, (factor_sring_t *)page, PAGE_SIZE);
    link.up = true;
    event_handle(link.port, upcall);
}

void link_open(unsigned int peer)
{
    char number[16];
    if (link.up || !peer || (link.own && !link.peer))
        return;
    if (!link.own) {
        if (store_read("domid", number, sizeof(number)) <= 0)
            return;
        link.own = (unsigned int)parse_number(number);
        link.peer = peer;
        link.asks = link.own < peer;
    }
    if (link.asks)
        offer();
    else
        take();
}

void link_ask(unsigned int count)
{
    int notify;
    if (!link.up || !link.asks)
        return;
    for (; count && !RING_FULL(&ring.front); count--) {
        struct factor_request *request = RING_GET_REQUEST(&ring.front, ring.front.req_prod_pvt);
        request->id = (uint32_t)++link.requests;
        request->number = link.number = next_number;
        next_number += 2;
        ring.front.req_prod_pvt++;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring.front, notify);
    if (notify) {
        link.notifications++;
        event_send(link.port);
    }
}

static uint32_t smallest_factor(uint32_t number)
{
    for (uint32_t factor = 2; factor <= number / factor; factor++)
        if (number % factor == 0)
            return factor;
    return number;
}

static void answer_all(void)
{
    int more, notify;
    do {
        RING_IDX producer = ring.back.sring->req_prod;
        xen_rmb();                       /* the index before the requests that it announces */
        while (ring.back.req_cons != producer) {
            struct factor_request request;
            RING_COPY_REQUEST(&ring.back, ring.back.req_cons, &request);
            ring.back.req_cons++;
            struct factor_response *response = RING_GET_RESPONSE(&ring.back, ring.back.rsp_prod_pvt);
            response->id = request.id;
            response->factor = link.factor = smallest_factor(link.number = request.number);
            ring.back.rsp_prod_pvt++;
            link.responses++;
        }
        RING_FINAL_CHECK_FOR_REQUESTS(&ring.back, more);
    } while (more);
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&ring.back, notify);
    if (notify) {
        link.notifications++;
        event_send(link.port);
    }
}

static void take_answers(void)
{
    int more;
    do {
        RING_IDX producer = ring.front.sring->rsp_prod;
        xen_rmb();
        for (; ring.front.rsp_cons != producer; ring.front.rsp_cons++) {
            link.factor = RING_GET_RESPONSE(&ring.front, ring.front.rsp_cons)->factor;
            link.responses++;
        }
        RING_FINAL_CHECK_FOR_RESPONSES(&ring.front, more);
    } while (more);
}

void link_serve(void)
{
    if (!link.up)
        return;
    if (link.asks)
        take_answers();
    else
        answer_all();
}

/* Direct paging says what a guest may map: its own frames, and what it was granted. */
void steal(void)
{
    static uint8_t window[PAGE_SIZE] __page_aligned;
    uint64_t own = pte_read((unsigned long)window);
    if (!link.secret) {
        print("I know no secret: the other domain must have the lower number, and the link must be up.\n");
        return;
    }
    int error = pte_write((unsigned long)window, (uint64_t)link.secret << 12 | PTE_DATA);
    if (error) {
        print("Machine frame %lx, domain %u's: update_va_mapping says %d. It stays secret.\n", link.secret, link.peer,
              error);
        return;
    }
    print("Machine frame %lx, domain %u's, reads: \"%s\".\n", link.secret, link.peer, (const char *)window);
    pte_write((unsigned long)window, own);
}
