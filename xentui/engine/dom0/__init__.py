"""What the control domain does, in Python: domain control, consoles, xenstore."""
