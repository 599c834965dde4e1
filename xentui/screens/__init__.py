"""The console's screens: one module a pane, each of which draws views and sends commands."""
