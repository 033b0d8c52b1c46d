"""Who takes part: a module for each, set up as its own documentation recommends."""
