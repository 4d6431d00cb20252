"""PostgreSQL as the loads meet it: sessions, encodings, roles, the catalogue, and what its errors mean."""
