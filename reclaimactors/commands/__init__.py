"""The commands, a module for each family: its `add_to` gives them to the command line."""
