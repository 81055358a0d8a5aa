"""Settings: one file of YAML, one kind of section, what changed between two of them, their schemas."""
