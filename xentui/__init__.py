"""Xen you can see: a paravirtualizing x86 hypervisor on an emulated processor, and a console to watch it."""

__version__ = "0.1.0"
