"""Constants of xen/version.h: xen_version commands and text lengths."""

XENVER_version = 0
XENVER_extraversion = 1

XEN_EXTRAVERSION_LEN = 16

XENVER_compile_info = 2
XENVER_capabilities = 3

XEN_CAPABILITIES_INFO_LEN = 1024

XENVER_changeset = 4

XEN_CHANGESET_INFO_LEN = 64

XENVER_platform_parameters = 5
XENVER_get_features = 6
XENVER_pagesize = 7
XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10
