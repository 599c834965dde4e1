"""Shared rings between a guest and the tools of the control domain (xen/io/)."""
