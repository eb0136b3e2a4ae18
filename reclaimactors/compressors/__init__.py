"""Built-in compressors, one a module; each is as small as a plugin should be."""
