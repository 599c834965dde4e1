"""The processor. Knows nothing of Xen."""
