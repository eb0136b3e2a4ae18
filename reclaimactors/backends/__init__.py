"""Built-in backing stores: `memory` (this process) and `file` (one file of slots)."""
