"""What runs in the main process of the worker, beside Celery's consumer."""
