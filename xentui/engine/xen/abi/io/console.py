"""Sizes of the PV console's shared ring (xen/io/console.h); its layout is struct xencons_interface."""

#: bytes in the ring towards the guest, and in the one from it
XENCONS_IN_SIZE = 1024
XENCONS_OUT_SIZE = 2048
