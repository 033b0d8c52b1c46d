"""The worker: notices that a running task is aborted, and ends it."""
