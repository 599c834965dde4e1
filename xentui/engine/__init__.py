"""The engine: the processor, the hypervisor, the control domain, and the machine that runs them."""
