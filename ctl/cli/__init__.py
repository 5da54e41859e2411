"""The ovctl command: one module per noun."""
