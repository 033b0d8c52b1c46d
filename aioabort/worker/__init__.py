"""The worker's side: what a running task sees of an abort, and how it ends by one."""
