"""Celery's results on asyncpg: ``result_backend = "aioabort+postgresql://…"``."""
