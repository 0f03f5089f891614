"""Programs for those who work on the project: pages made from the code, pictures of tables, counts, the lock file."""
