"""The client side: aborting tasks and awaiting their results, from asyncio."""
