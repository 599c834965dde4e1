"""A gdb remote server for a domain: `--gdb NAME=ADDRESS`, then `target remote ADDRESS` in gdb."""
