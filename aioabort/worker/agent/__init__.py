"""What runs on the agent's event loop: polling, reporting, and planning kills."""
