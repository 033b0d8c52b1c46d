"""Threads, greenlets, forks, and event loops in threads of our own."""
