"""``celery -A proj aioabort …``: abort tasks, and see what becomes of it."""
