"""Parameters and memory, counted from sizes alone."""
