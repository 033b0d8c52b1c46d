"""The demo, ``python -m aioabort.demo``, and the throw-away server under it."""
