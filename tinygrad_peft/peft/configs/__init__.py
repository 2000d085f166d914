"""Settings of methods: their base classes, types, files and JSON."""
