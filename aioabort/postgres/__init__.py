"""All that knows SQL or asyncpg: the schema, the statements, connections, LISTEN."""
