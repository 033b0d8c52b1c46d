"""Code in the thread of a task: before its body, in it, and at its end."""
