"""`Memory.stats` for monitoring systems, a module for each, whose library is an extra."""
