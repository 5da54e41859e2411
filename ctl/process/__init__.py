"""A process's own means: its state directory, clocks, back-off, what it tells systemd."""
