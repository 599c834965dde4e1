/* Another virtual CPU of ours, to which events go. */
#ifndef SECOND_VCPU_H
#define SECOND_VCPU_H

#include "runtime/guest.h"

bool second_vcpu_start(void);            /* false: the domain has but one */
void event_to_vcpu(unsigned long n);

#endif
