"""The producer's side: asking tasks to stop, and awaiting their end, from asyncio."""
