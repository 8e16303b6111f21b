"""Functions over a Session, one file a noun; none commits. Every write is an upsert on a natural key."""
