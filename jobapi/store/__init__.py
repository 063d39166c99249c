"""The database: engine, tables, statements, transactions."""
