"""The only package that uses SQL and asyncpg: schema, statements, connections, LISTEN."""
