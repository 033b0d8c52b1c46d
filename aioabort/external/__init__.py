"""Reads the results that Celery keeps outside PostgreSQL, for clients and workers."""
