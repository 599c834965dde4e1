/* From the first instruction in C to the guest's own main. */
#include "guest.h"

start_info_t *start_info;
shared_info_t *shared_info;
vcpu_info_t *own_vcpu;

struct boot_state boot;

void guest_start(start_info_t *info);

bool is_initial_domain(void)
{
    return start_info->flags & SIF_INITDOMAIN;
}

/* Find "name=value" among the words of the command line; value gets what follows, at most size - 1 characters. */
bool option(const char *name, char *value, size_t size)
{
    const char *at = (const char *)start_info->cmd_line;
    size_t length = strlen(name);
    while (*at) {
        if (!strncmp(at, name, length) && at[length] == '=') {
            size_t n = 0;
            for (at += length + 1; *at && *at != ' ' && n + 1 < size; at++)
                value[n++] = *at;
            value[n] = 0;
            return true;
        }
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return false;
}

unsigned long option_number(const char *name, unsigned long otherwise)
{
    char value[24];
    return option(name, value, sizeof(value)) ? parse_number(value) : otherwise;
}

void shut_down(unsigned int reason)
{
    struct sched_shutdown shutdown = {.reason = reason};
    for (;;)
        hypercall_sched_op(SCHEDOP_shutdown, &shutdown);
}

static void keep_boot_state(void)
{
    boot.code_pte = pte_read((unsigned long)guest_start);
    boot.data_pte = pte_read((unsigned long)&boot);
    boot.table_pte = pte_read(start_info->pt_base);
    boot.all_upcalls_masked = boot.no_channel_masked = boot.no_channel_pending = true;
    for (size_t i = 0; i < ARRAY_SIZE(shared_info->vcpu_info); i++)
        boot.all_upcalls_masked &= shared_info->vcpu_info[i].evtchn_upcall_mask == 1;
    for (size_t i = 0; i < ARRAY_SIZE(shared_info->evtchn_mask); i++) {
        boot.no_channel_masked &= !shared_info->evtchn_mask[i];
        boot.no_channel_pending &= !shared_info->evtchn_pending[i];
    }
}

void guest_start(start_info_t *info)
{
    start_info = info;
    memory_init();
    map_shared_info();
    keep_boot_state();
    events_init();
    console_init();
    protect_own_image();
    traps_init();
    events_on();
    guest_main();
    shut_down(SHUTDOWN_poweroff);
}
