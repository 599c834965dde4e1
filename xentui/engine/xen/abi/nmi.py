"""Constants of xen/nmi.h."""

XEN_NMIREASON_io_error = 1
XEN_NMIREASON_pci_serr = 2
XEN_NMIREASON_unknown = 4

XENNMI_register_callback = 0
XENNMI_unregister_callback = 1
