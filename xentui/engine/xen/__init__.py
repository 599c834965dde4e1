"""The hypervisor. Modules are named as in Xen's own tree."""
