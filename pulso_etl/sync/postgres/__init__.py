"""PostgreSQL for the loads: sessions, encodings, roles, the catalog, and the meaning of its errors."""
