"""The commands of ``celery -A proj aioabort``: abort tasks and follow them."""
