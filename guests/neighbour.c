/* The one beside the attacker: sums up its memory again and again, and says whether it ever changed. */
#include "runtime/guest.h"

const char guest_name[] = "neighbour";

#define PAGES 64

extern char text_start[], rodata_start[];

static uint64_t memory[PAGES * PAGE_SIZE / 8] __page_aligned;

/* A sum that any one changed bit changes, and any two exchanged words. */
static uint64_t checksum(const void *from, const void *to, uint64_t sum)
{
    for (const volatile uint64_t *at = from; at < (const volatile uint64_t *)to; at++)
        sum = (sum << 7 | sum >> 57) + *at;
    return sum;
}

/* The pages of a pattern, the kernel's code, and the P2M, which says that the frames are still the same. */
static uint64_t checksum_of_all(void)
{
    uint64_t sum = checksum(memory, memory + ARRAY_SIZE(memory), 0);
    sum = checksum(text_start, rodata_start, sum);
    return checksum(p2m, p2m + start_info->nr_pages / 8 * 8, sum);
}

void guest_main(void)
{
    unsigned long rounds = option_number("rounds", 400);
    uint64_t value = 0x9e3779b97f4a7c15;
    for (size_t i = 0; i < ARRAY_SIZE(memory); i++) {
        value ^= value << 13, value ^= value >> 7, value ^= value << 17;
        memory[i] = value;
    }
    uint64_t first = checksum_of_all();
    for (unsigned long round = 1; round <= rounds; round++) {
        if (checksum_of_all() == first)
            continue;
        print("neighbour: disturbed, in round %lu of %lu\n", round, rounds);
        return;
    }
    print("neighbour: undisturbed, %lu rounds\n", rounds);
}
